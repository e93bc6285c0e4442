//! The datum of `schemas/kick.avsc`, field by field in the schema's order.

use super::change::{read_id, write_id};
use super::datum::{Reader, write_count, write_nullable_text, write_text};
use crate::presence::change::{Kick, KickReason, KickedDevice};
use crate::presence::{Conn, Epoch, LogTime};
use crate::schema::Malformed;

pub(super) fn read(datum: &[u8]) -> Result<Kick, Malformed> {
    let mut reader = Reader::new(datum);
    let id = read_id(&mut reader);
    let gateway = reader.text("gateway").into();
    let epoch = Epoch(reader.count("epoch"));
    let conn = Conn(reader.count("conn"));
    let (user, platform, device) = (
        reader.nullable_text("user"),
        reader.nullable_text("platform"),
        reader.nullable_text("device"),
    );
    let whose = match (user, platform, device) {
        (Some(user), Some(platform), Some(device)) => Some(KickedDevice {
            user: user.into(),
            platform: platform.into(),
            device: device.into(),
        }),
        (None, None, None) => None,
        (_, _, _) => {
            reader.fail_with(
                "user",
                "must be null together with platform and device, or none of them",
            );
            None
        }
    };
    let kick = Kick {
        id,
        gateway,
        epoch,
        conn,
        whose,
        reason: reader.name("reason", &KickReason::ALL, KickReason::name),
        at: LogTime(reader.count("at")),
    };
    reader.end()?;
    Ok(kick)
}

pub(super) fn write(kick: &Kick, out: &mut Vec<u8>) {
    let Kick {
        id,
        gateway,
        epoch,
        conn,
        whose,
        reason,
        at,
    } = kick;
    write_id(*id, out);
    write_text(out, gateway);
    write_count(out, epoch.0);
    write_count(out, conn.0);
    let [user, platform, device] = match whose {
        Some(KickedDevice { user, platform, device }) => [user, platform, device].map(|name| Some(&**name)),
        None => [None; 3],
    };
    write_nullable_text(out, user);
    write_nullable_text(out, platform);
    write_nullable_text(out, device);
    write_text(out, reason.name());
    write_count(out, at.0);
}
