//! `rollcall topics acls`: the least permissions in Kafka that each part needs.
//!
//! Only what the code asks a broker for is here. `Describe` is implied by every other operation on a topic, a group or a
//! transactional id; it is listed where nothing else is needed. An idempotent producer needs nothing beside `Write` since
//! Kafka 3.0.

use crate::log::kafka::settings::Connection;
use crate::log::kafka::topics::ManagedTopic;
use crate::topics::OutputTopic;
use std::fmt::{self, Write as _};

/// Who gets the permissions.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// `rollcall serve --kafka`
    Engine,
    /// A gateway of your own: publishes events and follows kicks
    Gateway,
    /// A service that publishes events
    Publisher,
    /// A consumer of changes, kicks, the current states and incidents
    Reader,
    /// `rollcall webhook --kafka`
    Webhook,
    /// `rollcall log`, `audit`, `lake`, `quarantine`, `doctor` and `topics check`
    Operator,
}

impl Role {
    pub const ALL: [Role; 6] = [
        Role::Engine,
        Role::Gateway,
        Role::Publisher,
        Role::Reader,
        Role::Webhook,
        Role::Operator,
    ];

    fn name(self) -> &'static str {
        match self {
            Role::Engine => "engine",
            Role::Gateway => "gateway",
            Role::Publisher => "publisher",
            Role::Reader => "reader",
            Role::Webhook => "webhook",
            Role::Operator => "operator",
        }
    }
}

/// What a permission is about.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Resource {
    Topics(Vec<String>),
    Group(String),
    /// All ids with this beginning.
    TransactionalIds(String),
}

/// The operations that are allowed on a resource, by their names in Kafka.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Permission {
    resource: Resource,
    operations: &'static [&'static str],
}

/// Returns the least permissions of a role. `group` is the engines' group, `own_group` that of a consumer.
fn permissions(role: Role, connection: &Connection, group: &str, own_group: &str) -> Vec<Permission> {
    let topics = |of: &[ManagedTopic], operations| Permission {
        resource: Resource::Topics(of.iter().map(|topic| topic.name(connection)).collect()),
        operations,
    };
    let group_of = |name: &str, operations| Permission {
        resource: Resource::Group(name.to_owned()),
        operations,
    };
    const EVENTS: ManagedTopic = ManagedTopic::Events;
    const CHANGES: ManagedTopic = ManagedTopic::Output(OutputTopic::Changes);
    const KICKS: ManagedTopic = ManagedTopic::Output(OutputTopic::Kicks);
    const CURRENT: ManagedTopic = ManagedTopic::Output(OutputTopic::Current);
    match role {
        // It reads its own outputs to compare them, and the settings of every topic at start.
        Role::Engine => vec![
            topics(&ManagedTopic::ALL, &["Read", "Write", "DescribeConfigs"]),
            group_of(group, &["Read"]),
            Permission {
                resource: Resource::TransactionalIds(format!("{group}-")),
                operations: &["Write"],
            },
        ],
        Role::Gateway => vec![
            topics(&[EVENTS], &["Write"]),
            topics(&[KICKS], &["Read"]),
            group_of(own_group, &["Read"]),
        ],
        Role::Publisher => vec![topics(&[EVENTS], &["Write"])],
        Role::Reader => vec![
            topics(&[CHANGES, KICKS, CURRENT, ManagedTopic::Incidents], &["Read"]),
            group_of(own_group, &["Read"]),
        ],
        Role::Webhook => vec![
            topics(&[CHANGES, ManagedTopic::Owners], &["Read"]),
            group_of(own_group, &["Read"]),
        ],
        Role::Operator => vec![
            topics(&ManagedTopic::ALL, &["Read", "DescribeConfigs"]),
            group_of(group, &["Describe"]),
        ],
    }
}

/// Returns the commands that give a principal the permissions of these roles.
pub fn commands(
    roles: &[Role],
    principal: &str,
    connection: &Connection,
    bootstrap: &str,
    group: &str,
    own_group: &str,
) -> String {
    let mut text = String::new();
    for role in roles {
        let _ = writeln!(text, "# {}", role.name());
        for permission in permissions(*role, connection, group, own_group) {
            let _ = write!(
                text,
                "kafka-acls.sh --bootstrap-server {} --add --allow-principal {}",
                quoted(bootstrap),
                quoted(principal)
            );
            for operation in permission.operations {
                let _ = write!(text, " --operation {operation}");
            }
            let _ = writeln!(text, "{}", permission.resource);
        }
    }
    text
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Resource::Topics(names) => names.iter().try_for_each(|name| write!(f, " --topic {}", quoted(name))),
            Resource::Group(name) => write!(f, " --group {}", quoted(name)),
            Resource::TransactionalIds(prefix) => write!(
                f,
                " --resource-pattern-type prefixed --transactional-id {}",
                quoted(prefix)
            ),
        }
    }
}

/// Returns a word for a shell.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.:,/@=".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(roles: &[Role], prefix: Option<&str>) -> String {
        let connection = Connection::new("broker1:9092", prefix, None, &[]).expect("the flags are valid");
        commands(roles, "User:CN=a b", &connection, "broker1:9092", "rollcall", "mine")
    }

    #[test]
    fn an_engine_may_write_outputs_and_a_publisher_only_events() {
        assert_eq!(
            of(&[Role::Engine, Role::Publisher], None),
            "# engine\n\
             kafka-acls.sh --bootstrap-server broker1:9092 --add --allow-principal 'User:CN=a b' --operation Read --operation \
             Write --operation DescribeConfigs --topic presence.events --topic presence.changes --topic presence.kicks --topic \
             presence.quarantine --topic presence.current --topic presence.incidents --topic presence.owners\n\
             kafka-acls.sh --bootstrap-server broker1:9092 --add --allow-principal 'User:CN=a b' --operation Read --group \
             rollcall\n\
             kafka-acls.sh --bootstrap-server broker1:9092 --add --allow-principal 'User:CN=a b' --operation Write \
             --resource-pattern-type prefixed --transactional-id rollcall-\n\
             # publisher\n\
             kafka-acls.sh --bootstrap-server broker1:9092 --add --allow-principal 'User:CN=a b' --operation Write --topic \
             presence.events\n"
        );
    }

    #[test]
    fn nobody_but_an_engine_may_write_what_engines_write() {
        let connection = Connection::new("broker1:9092", Some("p"), None, &[]).expect("the flags are valid");
        for role in Role::ALL.into_iter().filter(|role| *role != Role::Engine) {
            for permission in permissions(role, &connection, "rollcall", "mine") {
                let Resource::Topics(names) = &permission.resource else {
                    continue;
                };
                let may_write = permission.operations.contains(&"Write");
                assert!(!may_write || *names == ["p.events"], "{role:?}: {permission:?}");
            }
        }
        assert!(of(&Role::ALL, Some("p")).contains("--topic p.kicks"));
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(quoted("User:alice"), "User:alice");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
