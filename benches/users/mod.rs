//! The simulated users of the benchmarks: each with one device, on one of twenty gateways.

use rollcall::presence::event::{ConnRef, DeviceRef};
use rollcall::presence::{Conn, Epoch};
use std::borrow::Cow;
use std::env;

/// An id of a user (`u`), of 12 bytes, or of a device (`d`), of 16 bytes. Neighbours have ids that are far apart.
pub fn id(kind: char, number: u32) -> String {
    let digits = if kind == 'u' { 11 } else { 15 };
    let scattered = u64::from(number).wrapping_mul(0x9E37_79B9) & 0xf_ffff_ffff;
    format!("{kind}{scattered:0digits$}")
}

pub const GATEWAYS: u32 = 20;

const GATEWAY_NAMES: [&str; GATEWAYS as usize] = [
    "gateway-00",
    "gateway-01",
    "gateway-02",
    "gateway-03",
    "gateway-04",
    "gateway-05",
    "gateway-06",
    "gateway-07",
    "gateway-08",
    "gateway-09",
    "gateway-10",
    "gateway-11",
    "gateway-12",
    "gateway-13",
    "gateway-14",
    "gateway-15",
    "gateway-16",
    "gateway-17",
    "gateway-18",
    "gateway-19",
];

/// The gateway of a user's device.
pub fn gateway(user: u32) -> Cow<'static, str> {
    GATEWAY_NAMES[(user % GATEWAYS) as usize].into()
}

/// A user's one device.
pub fn who(user: u32) -> DeviceRef<'static> {
    DeviceRef {
        user: id('u', user).into(),
        platform: "android".into(),
        device: id('d', user).into(),
    }
}

/// A user's connection with this number, which no other user is on.
pub fn via(user: u32, number: Conn) -> ConnRef<'static> {
    ConnRef {
        gateway: gateway(user),
        epoch: Epoch(1),
        conn: conn(user, number),
    }
}

/// The connection's number on its gateway.
pub fn conn(user: u32, number: Conn) -> Conn {
    Conn(number.0 << 32 | u64::from(user))
}

/// The number of users: a million, unless the environment sets another number.
pub fn count() -> u32 {
    match env::var("ROLLCALL_BENCH_USERS") {
        Ok(users) => users.parse().expect("ROLLCALL_BENCH_USERS is a number"),
        Err(_) => 1_000_000,
    }
}
