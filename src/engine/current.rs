//! A user's state for consumers that want only the newest: without connections and times of devices.

use crate::presence::state::{DeviceImage, UserImage};
use crate::presence::{Offset, Partition};
use crate::schema::avro::{DeviceState, UserState};
use std::borrow::Cow;

/// Returns a user's state after the record at an offset.
pub fn user_state<'a>(image: &UserImage<'a>, partition: Partition, offset: Offset) -> UserState<'a> {
    let device = |device: &DeviceImage<'a>| DeviceState {
        platform: Cow::Borrowed(device.platform),
        device: Cow::Borrowed(device.device),
        status: device.phase.status(),
    };
    UserState {
        user: Cow::Borrowed(image.user),
        version: image.version,
        status: image.status,
        since: image.since,
        custom_status: image.custom_status.map(Cow::Borrowed),
        devices: image.devices.iter().map(device).collect(),
        partition,
        offset,
    }
}
