//! wrk with 64 connections sees no error.

use blitz_tests::load::Wrk;
use blitz_tests::{Nginx, PATIENCE, Setup, matrix, require, wait_until};

matrix! {
    fn five_seconds_of_wrk_without_an_error(cell) {
        require!("nginx", "wrk");
        let nginx = Nginx::start();
        let gateway = Setup::new(cell).backend(nginx.address).start();
        Wrk::assert_clean(&Wrk::start(&format!("http://{}/", gateway.address), 64, 5).finish());
        wait_until("nothing is in flight", PATIENCE, || gateway.in_flight() == Some(0));
        gateway.stop();
    }
}
