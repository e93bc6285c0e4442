//! What is found out about users, here or on another node, in the form in which it is wanted.
//!
//! Of a user of this node the form is made from the borrowed state, of another node's from its JSON. So who answers with
//! JSON reads none, and who wants a few fields reads those.

use crate::engine::{FoldedUpTo, UserRow, millis};
use crate::schema::json;
use serde::Deserialize;
use serde_json::value::RawValue;

/// What was found out about one user.
#[derive(Clone)]
pub enum Found<T> {
    Known(T),
    Unknown,
    /// Why nobody could say.
    Unread(String),
}

impl<T> Found<T> {
    pub fn of(known: Option<T>) -> Found<T> {
        known.map_or(Found::Unknown, Found::Known)
    }

    pub fn is_unread(&self) -> bool {
        matches!(self, Found::Unread(_))
    }
}

/// A form in which a user is wanted.
pub trait FoundUser: Clone + Send + 'static {
    /// Returns what makes it of a user of this node.
    fn here() -> impl FnMut(UserRow<'_>) -> Self + Send + 'static;

    /// Makes it of the object that another node has given, and says which user it is.
    fn elsewhere(object: Box<RawValue>) -> serde_json::Result<(String, Self)>;
}

/// A user as JSON, ready to be sent: the object of [`User`](crate::api::answers::User).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UserJson(pub Vec<u8>);

impl FoundUser for UserJson {
    fn here() -> impl FnMut(UserRow<'_>) -> UserJson + Send + 'static {
        // It is the same for all users of an answer.
        let mut as_of = Vec::new();
        move |row: UserRow<'_>| {
            if as_of.is_empty() {
                write_as_of(&mut as_of, row.as_of);
            }
            let mut line = Vec::new();
            json::user_fields(&mut line, row.image, row.as_of.time);
            json::Object::more(&mut line).raw("as_of", &as_of).end();
            UserJson(line)
        }
    }

    fn elsewhere(object: Box<RawValue>) -> serde_json::Result<(String, UserJson)> {
        /// The one field that is read; the rest is passed on as it is.
        #[derive(Deserialize)]
        struct Named {
            user: String,
        }
        let Named { user } = serde_json::from_str(object.get())?;
        let line = Box::<str>::from(object).into_string().into_bytes();
        Ok((user, UserJson(line)))
    }
}

fn write_as_of(out: &mut Vec<u8>, as_of: &FoldedUpTo) {
    let FoldedUpTo {
        partition,
        offset,
        time,
        is_standby,
    } = *as_of;
    let mut object = json::Object::new(out);
    object
        .number("partition", partition.0.into())
        .optional_number("offset", offset.map(|offset| offset.0))
        .optional_number("time", millis(time));
    if is_standby {
        object.boolean("standby", true);
    }
    object.end();
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::api::answers::User;
    use crate::presence::event::Ending;
    use crate::presence::state::{DeviceImage, Phase, SessionImage, UserImage};
    use crate::presence::{Conn, Epoch, KickedBy, LogTime, LostBy, Offset, Partition, Status};

    /// Has a form made of a user with a device in each phase, and of the same user as another node gives it.
    pub fn both<T: FoundUser>() -> (T, T) {
        let session = SessionImage {
            login_at: LogTime(1),
            last_seen: LogTime(2),
            evidence: Offset(3),
            client: Some("app/\"1\""),
        };
        let online = Phase::Online {
            session,
            heartbeat_by: LogTime(9),
            background_by: None,
            linger: Some((Ending::Closed, LogTime(9))),
        };
        let away = |push| Phase::Away {
            session,
            push,
            lost_by: LostBy::Timeout,
            until: LogTime(9),
        };
        let kicked = Phase::Kicked {
            by: KickedBy::Admin,
            until: LogTime(9),
        };
        let device = |platform, phase| DeviceImage {
            platform,
            device: "d",
            gateway: "g",
            epoch: Epoch(1),
            conn: Conn(2),
            since: LogTime(1),
            phase,
            deadline: LogTime(9),
        };
        let image = UserImage {
            user: "alice\n",
            version: 7,
            status: Status::Online,
            since: LogTime(1),
            last_seen: LogTime(2),
            custom_status: Some("busy"),
            kept: None,
            kicked_at: None,
            barred: false,
            devices: vec![
                device("android", online),
                device("ipad", away(true)),
                device("mac", away(false)),
                device("web", kicked),
            ],
        };
        let as_of = FoldedUpTo {
            partition: Partition(4),
            offset: Some(Offset(5)),
            time: Some(LogTime(6)),
            is_standby: false,
        };
        let row = UserRow {
            image: &image,
            as_of: &as_of,
        };
        let UserJson(line) = UserJson::here()(row);
        let object: Box<RawValue> = serde_json::from_slice(&line).expect("JSON");
        let (user, there) = T::elsewhere(object).expect("a user");
        assert_eq!(user, image.user);
        (T::here()(row), there)
    }

    #[test]
    fn a_user_of_another_node_is_passed_on_as_one_of_this_node() {
        let (here, there) = both::<UserJson>();
        assert_eq!(here, there);
        let user: User = serde_json::from_slice(&here.0).expect("the type of the document");
        assert_eq!((user.user.as_str(), user.devices.len()), ("alice\n", 4));
        assert_eq!((user.as_of.offset, user.as_of.standby), (Some(5), None));
    }

    #[test]
    fn a_standby_says_so_in_every_user_of_its_answer() {
        let image = UserImage {
            user: "alice",
            version: 1,
            status: Status::Offline,
            since: LogTime(1),
            last_seen: LogTime(1),
            custom_status: None,
            kept: None,
            kicked_at: None,
            barred: false,
            devices: Vec::new(),
        };
        let as_of = FoldedUpTo {
            partition: Partition(4),
            offset: None,
            time: None,
            is_standby: true,
        };
        let mut make = UserJson::here();
        for _ in 0..2 {
            let UserJson(line) = make(UserRow {
                image: &image,
                as_of: &as_of,
            });
            let line = String::from_utf8(line).expect("UTF-8");
            let end = r#","devices":[],"as_of":{"partition":4,"offset":null,"time":null,"standby":true}}"#;
            assert!(line.ends_with(end), "{line}");
        }
    }
}
