//! Putting a stage on an interface, or a new program into the stage that is there.
//!
//! Owns: the order of the steps, and that a failure of any of them leaves the old stage in force and
//! nothing behind. Does not own: the contents of the maps (see [`crate::apply`]).
//!
//! A first attach builds everything in a directory of its own beside the final one: maps, contents,
//! program, link. The last step is a rename. A later attach checks the pinned maps, loads the program
//! onto them, and replaces the program in the pinned link (BPF_LINK_UPDATE): each packet meets the old
//! program or the new one.

use std::fmt::Display;
use std::io;

use aya::programs::links::FdLink;
use aya::programs::{ProgramError, ProgramInfo, Xdp, XdpMode as AyaMode, loaded_programs};
use aya::{Ebpf, EbpfError, EbpfLoader};
use blitz_config::model::XdpMode;
use blitz_ebpf_common::layout::{self, LAYOUT_MAGIC, LAYOUT_VERSION, Layout, Settings, maps};
use serde::Serialize;

use super::{Stage, pinned_link};
use crate::apply::Applied;
use crate::capabilities::{self, Capability};
use crate::error::{Error, Kind, Result};
use crate::image::Image;
use crate::link_facts::{self, LinkFacts};
use crate::lock::Lock;
use crate::maps::{Maps, Sizes};
use crate::netlink::{self, Interface, Mode};
use crate::pins::{InterfacePins, Pins};
use crate::sys::random;
use crate::{kernel, object};

/// What attach did.
#[derive(Debug)]
pub struct Attached {
    /// The stage.
    pub stage: Stage,
    /// The same in words and numbers.
    pub report: Report,
}

/// What attach did, to be shown.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The interface's name.
    pub interface: String,
    /// The program's number.
    pub program_id: u32,
    /// `native`, `generic` or `offloaded`.
    pub mode: &'static str,
    /// Why that mode.
    pub mode_reason: String,
    /// What was there before.
    pub kind: AttachKind,
    /// What the driver says.
    pub facts: LinkFacts,
    /// Services in force (count). With none, everything passes.
    pub services: usize,
    /// What else an operator should know, one sentence each.
    pub notes: Vec<String>,
}

/// What an attach found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AttachKind {
    /// Nothing: the stage is new.
    New,
    /// A stage of ours: its program was replaced, rules and counters stay.
    Replaced,
    /// The maps of a stage whose link is gone: they have a new link now, rules and counters stay.
    Renewed,
}

impl Stage {
    /// Puts the stage on `interface`, or a new program into the one that is there. With an `image` its
    /// contents are put in force too; without one a new stage is empty and one that is there keeps its
    /// contents. The caller has called [`Pins::prepare`].
    ///
    /// # Errors
    /// One sentence for each of: an old kernel, missing rights, no such interface, a program or maps of
    /// another owner, another layout or sizes, a table without room, a driver that refuses. What was in
    /// force stays in force.
    pub fn attach(
        pins: &Pins,
        lock: &Lock,
        interface: &str,
        mode: XdpMode,
        image: Option<&Image>,
    ) -> Result<Attached> {
        kernel::check()?;
        capabilities::require(&Capability::ATTACH)?;
        let found = netlink::interface(interface)?;
        if !found.has_ethernet_header() {
            return Err(Error::new(
                Kind::Interface,
                format!("{interface}: its frames have no Ethernet header (type {})", found.hardware),
                "attach to the Ethernet interface below it",
            ));
        }
        let staging = pins.staging(interface);
        if staging.exists() {
            // What a process that died left behind; under the lock nobody else is building it.
            staging.remove()?;
        }
        let own = pins.of(interface);
        let is_empty = std::fs::read_dir(own.directory()).is_ok_and(|mut entries| entries.next().is_none());
        if is_empty {
            own.remove()?;
        }
        let link = if own.exists() { pinned_link(&own)? } else { None };
        let link = link.filter(|link| link.interface_index != 0);
        if let Some(link) = link
            && link.interface_index != found.index
        {
            return Err(Error::new(
                Kind::Foreign,
                format!(
                    "{} belongs to another interface of this name, with index {} instead of {}, in another network \
                     namespace",
                    own.directory().display(),
                    link.interface_index,
                    found.index
                ),
                "run this in that namespace, or detach there first",
            ));
        }
        if let Some(running) = found.xdp
            && link.is_none_or(|link| link.program_id != running.program_id)
        {
            return Err(foreign_program(interface, running.program_id));
        }
        let mut attached = match (own.exists(), link.is_some()) {
            (true, true) => replace(pins, lock, &found, mode, image),
            (true, false) => renew(pins, lock, &found, mode, image),
            (false, _) => attach_new(pins, lock, &found, mode, image),
        }?;
        attached.report.facts = link_facts::collect(&found);
        attached.report.notes.extend(attached.report.facts.advice(interface));
        if attached.report.services == 0 {
            attached.report.notes.push(
                "no service is configured, so everything passes; name listeners or [[xdp.services]] in a \
                 configuration and attach again with --config"
                    .to_owned(),
            );
        }
        if !found.is_up {
            attached.report.notes.push(format!("{interface} is down; `ip link set {interface} up`"));
        }
        Ok(attached)
    }
}

/// Everything new, built aside and moved into place.
fn attach_new(
    pins: &Pins,
    lock: &Lock,
    interface: &Interface,
    mode: XdpMode,
    image: Option<&Image>,
) -> Result<Attached> {
    let staging = pins.staging(&interface.name);
    let result = build(&staging, lock, interface, mode, image).and_then(|(stage, report)| {
        let target = pins.of(&interface.name);
        std::fs::rename(staging.directory(), target.directory())
            .map_err(|error| Error::io(format!("rename to {}", target.directory().display()), &error))?;
        Ok(Attached { stage: Stage { pins: target, ..stage }, report })
    });
    if result.is_err() {
        // The first error is the one to tell; a later attach removes what could not be removed now.
        let _left_over = staging.remove();
    }
    result
}

fn build(
    staging: &InterfacePins,
    lock: &Lock,
    interface: &Interface,
    mode: XdpMode,
    image: Option<&Image>,
) -> Result<(Stage, Report)> {
    staging.create()?;
    let sizes = image.map_or_else(Sizes::default, |image| Sizes {
        sources_max: image.sources_max,
        deny_max: image.deny_max,
    });
    let mut loaded = Loaded::new(sizes, None)?;
    loaded.pin_maps(staging)?;
    let stage = Stage {
        interface: interface.name.clone(),
        pins: staging.clone(),
        sizes,
        maps: Maps::open_unchecked(staging)?,
    };
    let layout = Layout {
        magic: LAYOUT_MAGIC,
        version: LAYOUT_VERSION,
        sources_max: sizes.sources_max,
        deny_max: sizes.deny_max,
    };
    stage.maps.layout.put(&0, &layout).map_err(|error| stage.io("write LAYOUT", &error))?;
    let seed = random::word().map_err(|error| stage.io("draw a seed for the table of sources", &error))?;
    let settings = Settings { source_sets: sizes.source_sets(), seed, ..Settings::default() };
    stage.maps.settings.put(&0, &settings).map_err(|error| stage.io("write SETTINGS", &error))?;
    let applied = match image {
        Some(image) => stage.apply(lock, image)?,
        None => Applied::default(),
    };
    let program = loaded.program()?;
    let program_id = program_id(program)?;
    program.pin(staging.program()).map_err(|error| pin_error("the program", &error))?;
    let (link, mode_reason) = attach_link(program, interface, mode)?;
    link.pin(staging.link()).map_err(|error| pin_error("the link", &error))?;
    let report = report(interface, program_id, mode_reason, AttachKind::New, applied.services);
    Ok((stage, report))
}

/// A new program in the pinned link.
fn replace(
    pins: &Pins,
    lock: &Lock,
    interface: &Interface,
    mode: XdpMode,
    image: Option<&Image>,
) -> Result<Attached> {
    let stage = Stage::open(pins, &interface.name)?;
    let running = interface.xdp.map_or(Mode::Native, |running| running.mode);
    let is_other_mode = matches!(
        (mode, running),
        (XdpMode::Native, Mode::Generic) | (XdpMode::Generic, Mode::Native | Mode::Offloaded)
    );
    if is_other_mode {
        return Err(Error::new(
            Kind::Foreign,
            format!(
                "{} has a stage in {} mode, and a running link keeps its mode",
                interface.name,
                running.label()
            ),
            format!("blitz-ctl detach {0}, then attach {0} with the other mode", interface.name),
        ));
    }
    if let Some(image) = image {
        stage.check_sizes(image)?;
    }
    let mut loaded = Loaded::new(stage.sizes, Some(&stage.pins))?;
    let program = loaded.program()?;
    let program_id = program_id(program)?;
    let next = stage.pins.program_next();
    // A process that died between pin and rename left it.
    let _absent = std::fs::remove_file(&next);
    program.pin(&next).map_err(|error| pin_error("the program", &error))?;
    let result = (|| {
        // The contents come first: when they do not fit, the old program is still the one that runs.
        let services = contents(&stage, lock, image)?;
        update_link(program, &stage.pins)?;
        std::fs::rename(&next, stage.pins.program())
            .map_err(|error| stage.io("rename the program's pin", &error))?;
        Ok(services)
    })();
    if result.is_err() {
        let _left_over = std::fs::remove_file(&next);
    }
    let services = result?;
    let reason = "the link that is there keeps its mode".to_owned();
    let report = report(interface, program_id, reason, AttachKind::Replaced, services);
    Ok(Attached { stage, report })
}

/// A new link for maps whose link or interface is gone.
fn renew(
    pins: &Pins,
    lock: &Lock,
    interface: &Interface,
    mode: XdpMode,
    image: Option<&Image>,
) -> Result<Attached> {
    let stage = Stage::open(pins, &interface.name)?;
    if let Some(image) = image {
        stage.check_sizes(image)?;
    }
    let mut loaded = Loaded::new(stage.sizes, Some(&stage.pins))?;
    let program = loaded.program()?;
    let program_id = program_id(program)?;
    let services = contents(&stage, lock, image)?;
    // The old link is dead, and the old program runs nowhere: their names are free.
    let _absent = std::fs::remove_file(stage.pins.link());
    let _absent = std::fs::remove_file(stage.pins.program());
    program.pin(stage.pins.program()).map_err(|error| pin_error("the program", &error))?;
    let (link, mode_reason) = attach_link(program, interface, mode)?;
    link.pin(stage.pins.link()).map_err(|error| pin_error("the link", &error))?;
    let report = report(interface, program_id, mode_reason, AttachKind::Renewed, services);
    Ok(Attached { stage, report })
}

/// Puts the image in force, if there is one; how many services there are now.
fn contents(stage: &Stage, lock: &Lock, image: Option<&Image>) -> Result<usize> {
    match image {
        Some(image) => Ok(stage.apply(lock, image)?.services),
        None => Ok(stage.in_force()?.services.iter().filter(|service| service.rule != 0).count()),
    }
}

fn report(
    interface: &Interface,
    program_id: u32,
    mode_reason: String,
    kind: AttachKind,
    services: usize,
) -> Report {
    let running = netlink::interface(&interface.name).ok().and_then(|found| found.xdp);
    Report {
        interface: interface.name.clone(),
        program_id,
        mode: running.map_or("unknown", |running| running.mode.label()),
        mode_reason,
        kind,
        facts: LinkFacts::default(),
        services,
        notes: Vec::new(),
    }
}

/// The object in the kernel: its maps, and its program once it is asked for.
struct Loaded {
    object: Ebpf,
}

impl Loaded {
    /// Makes the maps with these sizes, or takes those that are pinned, which the caller has checked.
    fn new(sizes: Sizes, pinned: Option<&InterfacePins>) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        loader
            .map_max_entries(maps::SOURCES, sizes.source_sets())
            .map_max_entries(maps::DENY4, sizes.deny_entries())
            .map_max_entries(maps::DENY6, sizes.deny_entries());
        if let Some(pins) = pinned {
            for name in maps::ALL {
                loader.map_pin_path(name, pins.map(name));
            }
        }
        let object = loader.load(object::OBJECT).map_err(|error| load_error(&error))?;
        Ok(Self { object })
    }

    fn pin_maps(&self, pins: &InterfacePins) -> Result<()> {
        for name in maps::ALL {
            let map = self.object.map(name).ok_or_else(|| {
                Error::new(
                    Kind::System,
                    format!("the BPF object in this program has no map {name}"),
                    "it was not built from this source: `cargo xtask build-ebpf`",
                )
            })?;
            map.pin(pins.map(name)).map_err(|error| pin_error(name, &error))?;
        }
        Ok(())
    }

    /// The program, past the verifier.
    fn program(&mut self) -> Result<&mut Xdp> {
        let program: Option<&mut Xdp> =
            self.object.program_mut(layout::PROGRAM).and_then(|program| program.try_into().ok());
        let program = program.ok_or_else(|| {
            Error::new(
                Kind::System,
                format!("the BPF object in this program has no XDP program {}", layout::PROGRAM),
                "it was not built from this source: `cargo xtask build-ebpf`",
            )
        })?;
        program.load().map_err(|error| program_error("the kernel refused the program", &error))?;
        Ok(program)
    }
}

/// Attaches in the mode that was asked for; with `auto` in the driver where it can. Says why that mode.
fn attach_link(program: &mut Xdp, interface: &Interface, mode: XdpMode) -> Result<(FdLink, String)> {
    let attempt = |program: &mut Xdp, mode: AyaMode| -> std::result::Result<FdLink, ProgramError> {
        let id = program.attach_to_if_index(interface.index, mode)?;
        let link = program.take_link(id)?;
        // An old-style link, which cannot be pinned, ends when it is dropped here.
        FdLink::try_from(link)
            .map_err(|_| ProgramError::IOError(io::Error::from_raw_os_error(libc::EOPNOTSUPP)))
    };
    let asked = |error: &ProgramError, hint: &str| refused(interface, error, hint);
    match mode {
        XdpMode::Generic => attempt(program, AyaMode::Skb)
            .map(|link| (link, "generic mode was asked for".to_owned()))
            .map_err(|error| asked(&error, "check `dmesg`")),
        XdpMode::Native => attempt(program, AyaMode::Driver)
            .map(|link| (link, "native mode was asked for".to_owned()))
            .map_err(|error| {
                asked(&error, "--mode auto or --mode generic works on every interface, more slowly")
            }),
        XdpMode::Auto => match attempt(program, AyaMode::Driver) {
            Ok(link) => Ok((link, "the driver takes the program".to_owned())),
            Err(native) if is_taken(&native) => Err(asked(&native, "")),
            Err(native) => attempt(program, AyaMode::Skb)
                .map(|link| {
                    (link, format!("the driver does not take the program ({})", io_error_of(&native)))
                })
                .map_err(|error| asked(&error, "check `dmesg`")),
        },
    }
}

/// Replaces the program in the pinned link.
fn update_link(program: &mut Xdp, pins: &InterfacePins) -> Result<()> {
    let failed = |error: &dyn Display| {
        Error::new(
            Kind::System,
            format!("replace the program in {}: {error}", pins.link().display()),
            "check `dmesg`",
        )
    };
    let link = aya::programs::links::PinnedLink::from_pin(pins.link()).map_err(|error| failed(&error))?;
    let link = FdLink::from(link).try_into().map_err(|error| failed(&error))?;
    let id = program.attach_to_link(link).map_err(|error| failed(&error))?;
    // The pin keeps the link; our descriptor of it may go.
    program.take_link(id).map(drop).map_err(|error| failed(&error))
}

fn program_id(program: &Xdp) -> Result<u32> {
    program
        .info()
        .map(|info: ProgramInfo| info.id())
        .map_err(|error| program_error("read the program's number", &error))
}

/// The error of an interface that runs somebody else's program.
fn foreign_program(interface: &str, id: u32) -> Error {
    // Names of programs that are not ours take CAP_SYS_ADMIN; without it the number has to do.
    let found = loaded_programs().flatten().find(|program| program.id() == id);
    let name =
        found.and_then(|program| program.name_as_str().map(str::to_owned)).filter(|name| !name.is_empty());
    let name = name.map_or_else(String::new, |name| format!(" ({name})"));
    Error::new(
        Kind::Foreign,
        format!("{interface} runs XDP program {id}{name}, which is not ours, and it was left as it is"),
        format!(
            "have its owner remove it (`ip link set {interface} xdp off` for one attached by ip), then attach again"
        ),
    )
}

fn is_taken(error: &ProgramError) -> bool {
    matches!(io_error_of(error).raw_os_error(), Some(libc::EBUSY | libc::EEXIST))
}

/// The error of an attach that the kernel or the driver refused.
fn refused(interface: &Interface, error: &ProgramError, hint: &str) -> Error {
    let name = &interface.name;
    if is_taken(error) {
        let id =
            netlink::interface(name).ok().and_then(|found| found.xdp).map_or(0, |running| running.program_id);
        return foreign_program(name, id);
    }
    let error = io_error_of(error);
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => Error::io(format!("{name}: attach"), &error),
        _ => Error::new(Kind::Interface, format!("{name}: the kernel refused the attach ({error})"), hint),
    }
}

/// The error number within an error of aya.
fn io_error_of(error: &ProgramError) -> io::Error {
    let again = |error: &io::Error| {
        error.raw_os_error().map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
    };
    match error {
        ProgramError::SyscallError(error) => again(&error.io_error),
        ProgramError::IOError(error) | ProgramError::LoadError { io_error: error, .. } => again(error),
        other => io::Error::other(other.to_string()),
    }
}

/// The error of a program that the kernel did not take, with the verifier's last words.
pub(crate) fn program_error(what: &str, error: &ProgramError) -> Error {
    let io_error = io_error_of(error);
    match (error, io_error.raw_os_error()) {
        (_, Some(libc::EPERM)) => Error::io(what, &io_error),
        (ProgramError::LoadError { verifier_log, .. }, _) => {
            let log = verifier_log.to_string();
            let last = log.lines().rfind(|line| !line.trim().is_empty() && !line.starts_with("processed "));
            Error::new(
                Kind::Kernel,
                format!("{what}: {io_error} ({})", last.unwrap_or("the verifier said nothing").trim()),
                "this kernel does not take the object; report it with `uname -r`",
            )
        }
        _ => Error::io(what, &io_error),
    }
}

/// The error of an object whose maps could not be made.
pub(crate) fn load_error(error: &EbpfError) -> Error {
    match error {
        EbpfError::MapError(aya::maps::MapError::CreateError { name, io_error }) => {
            Error::io(format!("create the map {name}"), io_error)
        }
        other => {
            Error::new(Kind::System, format!("load the BPF object: {other}"), "check `dmesg` and `uname -r`")
        }
    }
}

fn pin_error(what: &str, error: &aya::pin::PinError) -> Error {
    match error {
        aya::pin::PinError::SyscallError(error) => Error::io(format!("pin {what}"), &error.io_error),
        other => Error::new(Kind::System, format!("pin {what}: {other}"), "check that bpffs is mounted"),
    }
}
