//! The encoding of a store's values: users and partitions as bytes.
//!
//! Numbers are varints (LEB128); text is its length and its bytes. The decoders return `None` for bytes that are not a
//! value of this layout, and never panic.

use crate::presence::event::Ending;
use crate::presence::policy::Policy;
use crate::presence::state::{
    DeviceImage, EarlyEndImage, GatewayImage, KeptImage, PartitionImage, Phase, SessionImage, UserImage,
};
use crate::presence::{Conn, Epoch, KickedBy, LogTime, LostBy, Offset, Partition, Revision, Status};
use crate::varint;

/// Appends a number.
pub(super) use crate::varint::put as put_number;

/// The first layout that has the revision in force.
const REVISION_SINCE: u64 = 3;

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_number(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// Appends 0 for `None`, else the number plus one.
fn put_optional(out: &mut Vec<u8>, number: Option<u64>) {
    put_number(out, number.map_or(0, |number| number.saturating_add(1)));
}

fn put_optional_text(out: &mut Vec<u8>, text: Option<&str>) {
    out.push(u8::from(text.is_some()));
    if let Some(text) = text {
        put_text(out, text);
    }
}

/// The bytes that are left to read.
pub(super) struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    pub fn number(&mut self) -> Option<u64> {
        varint::take(&mut self.0)
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = usize::try_from(self.number()?).ok()?;
        std::str::from_utf8(self.take(length)?).ok()
    }

    fn time(&mut self) -> Option<LogTime> {
        self.number().map(LogTime)
    }

    fn optional(&mut self) -> Option<Option<u64>> {
        let number = self.number()?;
        Some(number.checked_sub(1))
    }

    fn optional_text(&mut self) -> Option<Option<&'a str>> {
        match self.byte()? {
            0 => Some(None),
            _ => self.text().map(Some),
        }
    }
}

fn status_number(status: Status) -> u8 {
    match status {
        Status::Offline => 0,
        Status::PushOnline => 1,
        Status::Online => 2,
    }
}

fn lost_by_number(lost_by: LostBy) -> u8 {
    match lost_by {
        LostBy::Closed => 0,
        LostBy::Exit => 1,
        LostBy::Background => 2,
        LostBy::Timeout => 3,
        LostBy::GatewayLost => 4,
    }
}

const KICKED: u8 = 0;
const AWAY: u8 = 1;
const ONLINE: u8 = 2;

fn put_session(out: &mut Vec<u8>, session: &SessionImage<'_>) {
    let SessionImage {
        login_at,
        last_seen,
        evidence,
        client,
    } = session;
    put_number(out, login_at.0);
    put_number(out, last_seen.0);
    put_number(out, evidence.0);
    put_optional_text(out, *client);
}

fn session<'a>(bytes: &mut Bytes<'a>) -> Option<SessionImage<'a>> {
    Some(SessionImage {
        login_at: bytes.time()?,
        last_seen: bytes.time()?,
        evidence: Offset(bytes.number()?),
        client: bytes.optional_text()?,
    })
}

const HAS_KEPT: u8 = 1;
const HAS_KICKED_AT: u8 = 2;
const IS_BARRED: u8 = 4;

/// Appends the fields that few users have; one byte for all other users.
fn put_marks(out: &mut Vec<u8>, kept: Option<KeptImage<'_>>, kicked_at: Option<LogTime>, barred: bool) {
    let mark = |is: bool, mark: u8| if is { mark } else { 0 };
    out.push(mark(kept.is_some(), HAS_KEPT) | mark(kicked_at.is_some(), HAS_KICKED_AT) | mark(barred, IS_BARRED));
    if let Some(KeptImage { text, until }) = kept {
        put_text(out, text);
        put_number(out, until.0);
    }
    if let Some(kicked_at) = kicked_at {
        put_number(out, kicked_at.0);
    }
}

/// Appends a user without its id, which is in the key.
pub(super) fn put_user(out: &mut Vec<u8>, user: &UserImage<'_>) {
    let UserImage {
        user: _,
        version,
        status,
        since,
        last_seen,
        custom_status,
        kept,
        kicked_at,
        barred,
        devices,
    } = user;
    put_number(out, *version);
    out.push(status_number(*status));
    put_number(out, since.0);
    put_number(out, last_seen.0);
    put_optional_text(out, *custom_status);
    put_marks(out, *kept, *kicked_at, *barred);
    put_number(out, devices.len() as u64);
    for device in devices {
        let DeviceImage {
            platform,
            device,
            gateway,
            epoch,
            conn,
            since,
            phase,
            // The reader works it out.
            deadline: _,
        } = device;
        put_text(out, platform);
        put_text(out, device);
        put_text(out, gateway);
        put_number(out, epoch.0);
        put_number(out, conn.0);
        put_number(out, since.0);
        match phase {
            Phase::Online {
                session,
                heartbeat_by,
                background_by,
                linger,
            } => {
                out.push(ONLINE);
                put_session(out, session);
                put_number(out, heartbeat_by.0);
                put_optional(out, background_by.map(|by| by.0));
                match linger {
                    None => out.push(0),
                    Some((ending, until)) => {
                        out.push(match ending {
                            Ending::Closed => 1,
                            Ending::Exit => 2,
                        });
                        put_number(out, until.0);
                    }
                }
            }
            Phase::Away {
                session,
                push,
                lost_by,
                until,
            } => {
                out.push(AWAY);
                put_session(out, session);
                out.push(u8::from(*push));
                out.push(lost_by_number(*lost_by));
                put_number(out, until.0);
            }
            Phase::Kicked { by, until } => {
                out.push(KICKED);
                out.push(match by {
                    KickedBy::Displaced => 0,
                    KickedBy::Admin => 1,
                });
                put_number(out, until.0);
            }
        }
    }
}

pub(super) fn user<'a>(id: &'a str, bytes: &mut Bytes<'a>) -> Option<UserImage<'a>> {
    let mut image = UserImage {
        user: id,
        version: bytes.number()?,
        status: *Status::ALL.get(usize::from(bytes.byte()?))?,
        since: bytes.time()?,
        last_seen: bytes.time()?,
        custom_status: bytes.optional_text()?,
        kept: None,
        kicked_at: None,
        barred: false,
        devices: Vec::new(),
    };
    let marks = bytes.byte()?;
    if marks & HAS_KEPT != 0 {
        image.kept = Some(KeptImage {
            text: bytes.text()?,
            until: bytes.time()?,
        });
    }
    if marks & HAS_KICKED_AT != 0 {
        image.kicked_at = Some(bytes.time()?);
    }
    image.barred = marks & IS_BARRED != 0;
    for _ in 0..bytes.number()? {
        image.devices.push(device(bytes)?);
    }
    Some(image)
}

fn device<'a>(bytes: &mut Bytes<'a>) -> Option<DeviceImage<'a>> {
    let (platform, device, gateway) = (bytes.text()?, bytes.text()?, bytes.text()?);
    let (epoch, conn, since) = (Epoch(bytes.number()?), Conn(bytes.number()?), bytes.time()?);
    let phase = match bytes.byte()? {
        ONLINE => Phase::Online {
            session: session(bytes)?,
            heartbeat_by: bytes.time()?,
            background_by: bytes.optional()?.map(LogTime),
            linger: match bytes.byte()? {
                0 => None,
                1 => Some((Ending::Closed, bytes.time()?)),
                _ => Some((Ending::Exit, bytes.time()?)),
            },
        },
        AWAY => Phase::Away {
            session: session(bytes)?,
            push: bytes.byte()? != 0,
            lost_by: *LostBy::ALL.get(usize::from(bytes.byte()?))?,
            until: bytes.time()?,
        },
        KICKED => Phase::Kicked {
            by: match bytes.byte()? {
                0 => KickedBy::Displaced,
                _ => KickedBy::Admin,
            },
            until: bytes.time()?,
        },
        _ => return None,
    };
    // The exact deadline if the device is not online. If it is online, the state computes the deadline.
    let deadline = match &phase {
        Phase::Online { heartbeat_by, .. } => *heartbeat_by,
        Phase::Away { until, .. } | Phase::Kicked { until, .. } => *until,
    };
    Some(DeviceImage {
        platform,
        device,
        gateway,
        epoch,
        conn,
        since,
        phase,
        deadline,
    })
}

/// Appends the partition without its users. `policy` is its completed document.
pub(super) fn put_partition(out: &mut Vec<u8>, image: &PartitionImage<'_>, policy: &str) {
    let PartitionImage {
        partition,
        offset,
        time,
        seq,
        revision,
        rehearsed,
        grace_until,
        // As the document.
        policy: _,
        policy_since,
        gateways,
        early_ends,
    } = image;
    put_number(out, partition.0.into());
    put_optional(out, offset.map(|offset| offset.0));
    put_optional(out, time.map(|time| time.0));
    put_number(out, *seq);
    put_optional(out, grace_until.map(|time| time.0));
    put_text(out, policy);
    put_optional(out, policy_since.map(|offset| offset.0));
    put_number(out, gateways.len() as u64);
    for gateway in gateways {
        let GatewayImage {
            name,
            epoch,
            ended,
            lease_until,
            last_until,
        } = gateway;
        put_text(out, name);
        put_number(out, epoch.0);
        out.push(u8::from(*ended));
        put_optional(out, lease_until.map(|until| until.0));
        put_number(out, last_until.0);
    }
    put_number(out, early_ends.len() as u64);
    for end in early_ends {
        let EarlyEndImage {
            gateway,
            epoch,
            conn,
            came,
        } = end;
        put_text(out, gateway);
        put_number(out, epoch.0);
        put_number(out, conn.0);
        put_number(out, came.0);
    }
    put_number(out, revision.0.into());
    if *revision >= Revision::REHEARSAL {
        put_number(out, *rehearsed);
    }
}

/// The values that [`put_partition`] wrote, with the policy still as a document.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SavedPartition<'a> {
    pub partition: Partition,
    pub offset: Option<Offset>,
    pub time: Option<LogTime>,
    pub seq: u64,
    pub revision: Revision,
    pub rehearsed: u64,
    pub grace_until: Option<LogTime>,
    pub policy: &'a str,
    pub policy_since: Option<Offset>,
    pub gateways: Vec<GatewayImage<'a>>,
    pub early_ends: Vec<EarlyEndImage<'a>>,
}

impl<'a> SavedPartition<'a> {
    /// Returns the partition as a state is restored from it. `policy` is [`SavedPartition::policy`], parsed.
    pub fn image(self, policy: &'a Policy) -> PartitionImage<'a> {
        let SavedPartition {
            partition,
            offset,
            time,
            seq,
            revision,
            rehearsed,
            grace_until,
            policy: _,
            policy_since,
            gateways,
            early_ends,
        } = self;
        PartitionImage {
            partition,
            offset,
            time,
            seq,
            revision,
            rehearsed,
            grace_until,
            policy,
            policy_since,
            gateways,
            early_ends,
        }
    }
}

pub(super) fn partition<'a>(bytes: &mut Bytes<'a>, layout: u64) -> Option<SavedPartition<'a>> {
    let mut image = SavedPartition {
        partition: Partition(u32::try_from(bytes.number()?).ok()?),
        offset: bytes.optional()?.map(Offset),
        time: bytes.optional()?.map(LogTime),
        seq: bytes.number()?,
        revision: Revision::FIRST,
        rehearsed: 0,
        grace_until: bytes.optional()?.map(LogTime),
        policy: bytes.text()?,
        policy_since: bytes.optional()?.map(Offset),
        gateways: Vec::new(),
        early_ends: Vec::new(),
    };
    for _ in 0..bytes.number()? {
        image.gateways.push(GatewayImage {
            name: bytes.text()?,
            epoch: Epoch(bytes.number()?),
            ended: bytes.byte()? != 0,
            lease_until: bytes.optional()?.map(LogTime),
            last_until: bytes.time()?,
        });
    }
    for _ in 0..bytes.number()? {
        image.early_ends.push(EarlyEndImage {
            gateway: bytes.text()?,
            epoch: Epoch(bytes.number()?),
            conn: Conn(bytes.number()?),
            came: bytes.time()?,
        });
    }
    if layout >= REVISION_SINCE {
        image.revision = Revision(u32::try_from(bytes.number()?).ok()?);
        if image.revision >= Revision::REHEARSAL {
            image.rehearsed = bytes.number()?;
        }
    }
    Some(image)
}

pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub(super) fn bytes<'a>(from: &mut Bytes<'a>) -> Option<&'a [u8]> {
    let length = usize::try_from(from.number()?).ok()?;
    from.take(length)
}
