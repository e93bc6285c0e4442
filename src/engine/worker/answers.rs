//! What a worker answers, between batches: what is committed and nothing else.

use super::{Answer, PartitionStats, QueryError, Reply, Worker};
use crate::engine::outcomes::Outcomes;
use crate::engine::partition::PartitionProcessor;
use crate::engine::past::{IndexView, Past, PastOf};
use crate::engine::users::{FoldedUpTo, UsersReply};
use crate::engine::{Error, KnownGateway};
use crate::log::PartitionHandle;
use crate::presence::Offset;
use crate::presence::policy::Policy;
use crate::store;
use crate::topics::Topic;
use std::sync::Arc;

/// A question, and the offset that must be folded before it is answered.
pub(super) struct Waiting {
    at_least: Option<Offset>,
    question: Question,
}

/// What is asked about the state.
pub(super) enum Question {
    Users(Vec<String>, UsersReply),
    Policy(Reply<Answer<(Policy, Option<Offset>)>>),
    Partition(Reply<Vec<KnownGateway>>),
    Outcomes(Vec<Offset>, Reply<Outcomes>),
    Past(PastOf, Reply<Past>),
}

impl Question {
    fn is_given_up(&self) -> bool {
        match self {
            Question::Users(_, reply) => reply.is_given_up(),
            Question::Policy(reply) => reply.is_closed(),
            Question::Partition(reply) => reply.is_closed(),
            Question::Outcomes(_, reply) => reply.is_closed(),
            Question::Past(_, reply) => reply.is_closed(),
        }
    }
}

impl From<store::Error> for QueryError {
    fn from(error: store::Error) -> QueryError {
        let text = error.to_string().into();
        match error {
            // The partition opens its store again by itself, and the disk may have room or files by then.
            store::Error::Open { .. } | store::Error::Failed { .. } => QueryError::StoreUnavailable(text),
            store::Error::Damaged { .. } | store::Error::Layout { .. } | store::Error::LaterLayout { .. } => {
                QueryError::Failed(text)
            }
        }
    }
}

impl From<Error> for QueryError {
    /// Of what was looked up in the store.
    fn from(error: Error) -> QueryError {
        match error {
            Error::Store(error) => error.into(),
            other => QueryError::Failed(other.to_string().into()),
        }
    }
}

impl Worker {
    pub(super) fn ask(&mut self, at_least: Option<Offset>, question: Question) {
        if self.is_to_wait(at_least) {
            self.waiting.push(Waiting { at_least, question });
        } else {
            self.answer(question);
        }
    }

    fn is_to_wait(&self, at_least: Option<Offset>) -> bool {
        self.control.is_to_wait(self.view().as_ref(), at_least)
    }

    fn answer(&self, question: Question) {
        match question {
            Question::Outcomes(offsets, reply) => {
                let answer = self.shown().map(|processor| Outcomes {
                    each: processor.outcomes().each(&offsets, processor.applied()),
                    platforms: processor.state().policy().platforms.keys().cloned().collect(),
                });
                let _ = reply.send(answer);
            }
            Question::Past(of, reply) => {
                let _ = reply.send(self.shown().and_then(|processor| self.past(processor, &of)));
            }
            Question::Users(users, reply) => {
                let shown = self.shown();
                reply.answer(&users, shown.map(|processor| (processor, self.folded_up_to(processor))));
            }
            Question::Policy(reply) => {
                let answer = self.shown().map(|processor| {
                    let image = processor.state().partition_image();
                    Answer {
                        value: (image.policy.clone(), image.policy_since),
                        as_of: image.offset,
                    }
                });
                let _ = reply.send(answer);
            }
            Question::Partition(reply) => {
                let answer = self.shown().map(|processor| {
                    let image = processor.state().partition_image();
                    let gateways = image.gateways.iter().map(|gateway| KnownGateway {
                        name: gateway.name.into(),
                        epoch: gateway.epoch,
                        ended: gateway.ended,
                        lease_until: gateway.lease_until,
                    });
                    gateways.collect()
                });
                let _ = reply.send(answer);
            }
        }
    }

    /// The partition, if what it has may be shown.
    fn shown(&self) -> Result<&PartitionProcessor, QueryError> {
        let may_show = self.control.may_show(self.view().as_ref()) && !self.dependencies.log.is_cut_off();
        let processor = self.processor.as_ref().filter(|_| may_show);
        processor.ok_or(QueryError::Unavailable)
    }

    fn past(&self, processor: &PartitionProcessor, of: &PastOf) -> Result<Past, QueryError> {
        let user = of.user();
        let now = match of {
            PastOf::Everybody | PastOf::User(_) => None,
            PastOf::UserAndStatus(user) => {
                let now = processor.user_now(user);
                Some(now?)
            }
        };
        let index = processor.index().and_then(|(index, reader)| {
            Some(IndexView {
                reader: reader?,
                stored: index.stored(),
                pending: user.map(|user| index.pending_of(user)).unwrap_or_default(),
                marks: index.pending_marks(),
            })
        });
        Ok(Past {
            partition: self.partition,
            log: self.dependencies.log.clone(),
            schemas: self.dependencies.services.schemas.clone(),
            oldest: self.oldest_change.clone(),
            index,
            time: processor.state().time(),
            changes: processor.state().seq(),
            census: processor.census().clone(),
            applied: processor.applied(),
            now,
            most: u64::MAX,
            given_up: Arc::default(),
        })
    }

    fn folded_up_to(&self, processor: &PartitionProcessor) -> FoldedUpTo {
        FoldedUpTo {
            partition: self.partition,
            offset: processor.state().offset(),
            time: processor.state().time(),
            is_standby: matches!(processor.log(), PartitionHandle::Standby(_)),
        }
    }

    pub(super) fn answer_waiting(&mut self) {
        // Those who gave up waiting are not kept, even while there is nobody to answer.
        self.waiting.retain(|waiting| !waiting.question.is_given_up());
        let waiting = std::mem::take(&mut self.waiting);
        let (later, now) = waiting
            .into_iter()
            .partition(|waiting| self.is_to_wait(waiting.at_least));
        self.waiting = later;
        let now: Vec<Waiting> = now;
        now.into_iter().for_each(|waiting| self.answer(waiting.question));
    }

    pub(super) fn stats(&self) -> PartitionStats {
        let processor = self.processor.as_ref();
        let range = match processor {
            Some(processor) => processor.log().events().range(),
            None => self.dependencies.log.range(Topic::Events, self.partition),
        };
        let end = range.map_or(Offset(0), |range| range.end);
        let applied = processor.map_or(Offset(0), PartitionProcessor::applied);
        let held = self.control.standstill().map(|standstill| {
            let reason = standstill.reason();
            format!("{reason} ({} s so far)", standstill.for_ms / 1_000).into()
        });
        PartitionStats {
            partition: self.partition,
            state: self.control.state(self.view().as_ref()),
            error: self.failure.clone().filter(|_| self.control.has_failed()),
            refusal: self.refusal.clone(),
            warning: held.or_else(|| self.warning()),
            log_end: end,
            committed: processor.map_or(Offset(0), |processor| processor.committed().next),
            applied,
            lag: self.lag(applied, end),
            time: processor.and_then(|processor| processor.state().time()),
            census: processor
                .map(|processor| processor.census().clone())
                .unwrap_or_default(),
            revision: processor.map(|processor| processor.state().revision()),
            changes: processor.map_or(0, |processor| processor.state().seq()),
            ignored: processor
                .map(|processor| *processor.without_effect().0)
                .unwrap_or_default(),
            rejected: processor
                .map(|processor| processor.without_effect().1.clone())
                .unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn a_store_that_cannot_be_read_may_be_read_later_and_a_damaged_one_may_not() {
        let directory = || PathBuf::from("/x");
        let cause = || "too many open files".to_owned();
        let errors = [
            (
                store::Error::Open {
                    directory: directory(),
                    cause: cause(),
                },
                true,
            ),
            (
                store::Error::Failed {
                    directory: directory(),
                    cause: cause(),
                },
                true,
            ),
            (
                store::Error::Damaged {
                    directory: directory(),
                    what: "a row".into(),
                },
                false,
            ),
            (
                store::Error::Layout {
                    directory: directory(),
                    found: 1,
                },
                false,
            ),
            (
                store::Error::LaterLayout {
                    directory: directory(),
                    found: 9,
                },
                false,
            ),
        ];
        for (error, passes) in errors {
            let text = error.to_string();
            let answer = QueryError::from(Error::Store(error));
            assert_eq!(answer.to_string(), text);
            assert_eq!(matches!(answer, QueryError::StoreUnavailable(_)), passes, "{text}");
            assert_eq!(matches!(answer, QueryError::Failed(_)), !passes, "{text}");
        }
        let unreadable = QueryError::from(Error::Unreadable);
        assert!(matches!(unreadable, QueryError::Failed(_)), "{unreadable}");
    }
}
