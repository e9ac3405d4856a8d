//! The configuration of Blitz: a file, a validated model, and the plan between two models.
//!
//! Pure: text in, types out. No file is opened and no name is resolved here.
//!
//! ```
//! use blitz_config::{Format, Overrides, load};
//!
//! let text = r#"{"backends": [{"host": "127.0.0.1", "port": 9001}]}"#;
//! let overrides = Overrides { port: Some(8080), ..Overrides::default() };
//! let config = load(text, Format::Json, "edge.json", &overrides).unwrap();
//! assert_eq!(config.listeners[0].address.port(), 8080);
//!
//! let error = load("timeouts = { keep_alive = 5 }", Format::Toml, "edge.toml", &overrides).unwrap_err();
//! assert_eq!(error.to_string(), "edge.toml: timeouts.keep_alive: unknown key; did you mean \"keep_alive_ms\"?");
//! ```
#![forbid(unsafe_code)]

mod address;
pub mod error;
pub mod file;
#[doc(hidden)]
pub mod fuzz;
pub mod model;
pub mod pattern;
pub mod plan;
mod recommended;
pub mod schema;
mod suggest;
pub mod validate;

pub use error::ConfigError;
pub use file::{FileConfig, Format, parse};
pub use model::Config;
pub use plan::Plan;
pub use schema::json_schema;
pub use validate::{Overrides, from_command_line, load, validate, without_file};
