//! The datum of `schemas/kick.avsc`, field by field in its order.

use super::change::{read_id, write_id};
use super::datum::{Reader, write_count, write_text};
use crate::presence::change::{Kick, KickReason};
use crate::presence::{Conn, Epoch, LogTime};
use crate::schema::Malformed;

pub(super) fn read(datum: &[u8]) -> Result<Kick, Malformed> {
    let mut reader = Reader::new(datum);
    let kick = Kick {
        id: read_id(&mut reader),
        gateway: reader.text("gateway").into(),
        epoch: Epoch(reader.count("epoch")),
        conn: Conn(reader.count("conn")),
        user: reader.text("user").into(),
        platform: reader.text("platform").into(),
        device: reader.text("device").into(),
        reason: reader.name("reason", &KickReason::ALL, KickReason::name),
        at: LogTime(reader.count("at")),
    };
    reader.end()?;
    Ok(kick)
}

pub(super) fn write(kick: &Kick, out: &mut Vec<u8>) {
    write_id(kick.id, out);
    write_text(out, &kick.gateway);
    write_count(out, kick.epoch.0);
    write_count(out, kick.conn.0);
    write_text(out, &kick.user);
    write_text(out, &kick.platform);
    write_text(out, &kick.device);
    write_text(out, kick.reason.name());
    write_count(out, kick.at.0);
}
