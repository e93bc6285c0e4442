//! Users as a worker shows them to who asks: borrowed from its state, with the record up to which they are folded.
//!
//! Who asks gives a function that makes of each user what is wanted: a line of JSON, or a few fields. It runs on the worker's
//! thread between two batches, so it only copies; nothing is built that nobody reads, and nothing is built twice.

use super::partition::PartitionProcessor;
use super::worker::QueryError;
use crate::presence::state::UserImage;
use crate::presence::{LogTime, Offset, Partition};
use tokio::sync::oneshot;

/// The last record that is folded into an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FoldedUpTo {
    pub partition: Partition,
    /// `None` where no record came; so is its time.
    pub offset: Option<Offset>,
    pub time: Option<LogTime>,
    /// A standby answers: the owner may have folded more.
    pub is_standby: bool,
}

/// A user in an answer. `as_of` is the same for all users of one question.
#[derive(Clone, Copy)]
pub struct UserRow<'r> {
    pub image: &'r UserImage<'r>,
    pub as_of: &'r FoldedUpTo,
}

/// What is made of users, in the order asked; `None` for one who is not known.
pub type UserRows<T> = Result<Vec<Option<T>>, QueryError>;

/// What is made of the users that are asked for, and who gets it.
pub struct UsersReply(Box<dyn AskedUsers>);

impl UsersReply {
    pub fn new<T: Send + 'static>(
        each: impl FnMut(UserRow<'_>) -> T + Send + 'static,
        reply: oneshot::Sender<UserRows<T>>,
    ) -> UsersReply {
        UsersReply(Box::new(Making { each, reply }))
    }

    /// Whether nobody waits for it any more.
    pub(super) fn is_given_up(&self) -> bool {
        self.0.is_given_up()
    }

    pub(super) fn answer(self, users: &[String], shown: Result<(&PartitionProcessor, FoldedUpTo), QueryError>) {
        self.0.answer(users, shown);
    }
}

/// Without what is made of the users, so that a question has one type.
trait AskedUsers: Send {
    fn is_given_up(&self) -> bool;
    fn answer(self: Box<Self>, users: &[String], shown: Result<(&PartitionProcessor, FoldedUpTo), QueryError>);
}

struct Making<F, T> {
    each: F,
    reply: oneshot::Sender<UserRows<T>>,
}

impl<T: Send, F: FnMut(UserRow<'_>) -> T + Send> AskedUsers for Making<F, T> {
    fn is_given_up(&self) -> bool {
        self.reply.is_closed()
    }

    fn answer(self: Box<Self>, users: &[String], shown: Result<(&PartitionProcessor, FoldedUpTo), QueryError>) {
        let Making { mut each, reply } = *self;
        let rows = shown.and_then(|(processor, as_of)| {
            let names: Vec<&str> = users.iter().map(String::as_str).collect();
            let each = |image: &UserImage<'_>| each(UserRow { image, as_of: &as_of });
            processor.look_up_all(&names, each).map_err(QueryError::from)
        });
        // The asker may have gone.
        let _ = reply.send(rows);
    }
}
