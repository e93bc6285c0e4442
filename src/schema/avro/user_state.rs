//! The datum of `schemas/user_state.avsc`, field by field in the schema's order.

use super::datum::{Reader, write_array, write_count, write_int, write_nullable_text, write_text};
use crate::presence::{LogTime, Offset, Partition, Status};
use crate::schema::Malformed;
use std::borrow::Cow;

/// A user's current presence: the value in the compacted topic (`docs/rules.md` section 9). A forgotten user has none;
/// the topic then gets a null value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UserState<'a> {
    pub user: Cow<'a, str>,
    /// The version of the user's last change.
    pub version: u64,
    pub status: Status,
    /// Since when the user has this status.
    pub since: LogTime,
    pub custom_status: Option<Cow<'a, str>>,
    /// Sorted by (platform, device).
    pub devices: Vec<DeviceState<'a>>,
    /// The partition of the input record that caused the last change; `offset` likewise.
    pub partition: Partition,
    pub offset: Offset,
}

/// One device of a [`UserState`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceState<'a> {
    pub platform: Cow<'a, str>,
    pub device: Cow<'a, str>,
    pub status: Status,
}

/// The fewest bytes of a device: each of its three strings takes at least one.
const DEVICE_BYTES_MIN: usize = 3;

pub(super) fn read(datum: &[u8]) -> Result<UserState<'_>, Malformed> {
    let mut reader = Reader::new(datum);
    let state = UserState {
        user: Cow::Borrowed(reader.text("user")),
        version: reader.count("version"),
        status: reader.status("status"),
        since: LogTime(reader.count("since")),
        custom_status: reader.nullable_text("custom_status").map(Cow::Borrowed),
        devices: reader.array("devices", DEVICE_BYTES_MIN, |reader, _| {
            Ok(DeviceState {
                platform: Cow::Borrowed(reader.text("a device's platform")),
                device: Cow::Borrowed(reader.text("a device's device")),
                status: reader.status("a device's status"),
            })
        }),
        partition: Partition(reader.int("partition")),
        offset: Offset(reader.count("offset")),
    };
    reader.end()?;
    Ok(state)
}

pub(super) fn write(state: &UserState<'_>, out: &mut Vec<u8>) {
    let UserState {
        user,
        version,
        status,
        since,
        custom_status,
        devices,
        partition,
        offset,
    } = state;
    write_text(out, user);
    write_count(out, *version);
    write_text(out, status.name());
    write_count(out, since.0);
    write_nullable_text(out, custom_status.as_deref());
    write_array(out, devices, |out, device| {
        let DeviceState {
            platform,
            device,
            status,
        } = device;
        write_text(out, platform);
        write_text(out, device);
        write_text(out, status.name());
    });
    write_int(out, partition.0);
    write_count(out, offset.0);
}

impl UserState<'_> {
    /// Returns the state with owned text, for use after the bytes that it was read from are gone.
    pub fn into_owned(self) -> UserState<'static> {
        let own = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        UserState {
            user: own(self.user),
            version: self.version,
            status: self.status,
            since: self.since,
            custom_status: self.custom_status.map(own),
            devices: self
                .devices
                .into_iter()
                .map(|device| DeviceState {
                    platform: own(device.platform),
                    device: own(device.device),
                    status: device.status,
                })
                .collect(),
            partition: self.partition,
            offset: self.offset,
        }
    }
}
