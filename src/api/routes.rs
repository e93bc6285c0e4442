//! The table of all HTTP routes: what can be asked, which scope it needs, and with which parameters.
//!
//! The server's router, its access check and the parameters that it accepts come from [`ROUTES`], so a route that is not
//! in the table cannot be served, and a route in the table cannot be served without its scope.

use crate::presence::event::bounds;
use std::ops::RangeInclusive;

/// The methods that routes have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RouteMethod {
    Get,
    Post,
}

impl RouteMethod {
    pub const fn name(self) -> &'static str {
        match self {
            RouteMethod::Get => "GET",
            RouteMethod::Post => "POST",
        }
    }
}

/// What a route needs of its caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// Nothing: the console's files and the probes.
    Nothing,
    /// The scope `read`.
    Read,
    /// The scope `read`, or a ticket in the address.
    Follow,
    /// The scope `publish`, or `admin`.
    Publish,
    /// The scope `metrics`, or `read`.
    Metrics,
    /// A UserSig of Tencent Cloud IM; no bearer token is looked at.
    UserSig,
}

/// Every route, in the order of [`ROUTES`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RouteId {
    Events,
    User,
    UserById,
    UsersQuery,
    UserChanges,
    UserChangesById,
    UserHistory,
    UserHistoryById,
    UserWhy,
    UserWhyById,
    At,
    Changes,
    Kicks,
    ChangesQuery,
    KicksQuery,
    Tickets,
    Policy,
    Gateways,
    Stats,
    StatsHistory,
    Incidents,
    Edge,
    Metrics,
    Healthz,
    Readyz,
    OpenApi,
    Page,
    RollcallJs,
    ConsoleFile,
    Outcomes,
    TimQueryOnlineStatus,
    TimQueryState,
    TimKick,
}

impl RouteId {
    /// Returns the entry of the table.
    pub fn route(self) -> &'static Route {
        &ROUTES[self as usize]
    }
}

/// One route.
#[derive(Debug)]
pub struct Route {
    pub id: RouteId,
    pub method: RouteMethod,
    /// `{name}` stands for one segment.
    pub path: &'static str,
    pub need: Need,
    pub parameters: &'static [Parameter],
    /// What it does, as a sentence.
    pub about: &'static str,
    /// Whether nodes of a cluster ask it of each other.
    pub by_nodes: bool,
    /// Whether it appends events. Their records carry the trace of the request.
    pub appends: bool,
}

/// A parameter beside the path.
#[derive(Debug)]
pub struct Parameter {
    pub name: &'static str,
    pub place: ParameterPlace,
    pub kind: ParameterKind,
    pub required: bool,
    pub about: &'static str,
}

/// Where a parameter stands in a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ParameterPlace {
    Query,
    Header,
}

/// What a parameter's value may be.
#[derive(Debug)]
pub enum ParameterKind {
    /// An integer within bounds.
    Integer(RangeInclusive<u64>),
    /// A time: RFC 3339, milliseconds since 1970, or a span before now such as `-3h`.
    Time,
    /// Text of so many bytes.
    Text((usize, usize)),
    /// Text of so many bytes, which may be repeated up to this many times.
    Texts((usize, usize), usize),
    /// Present or absent: `strict`, `strict=1`, `strict=true`.
    Flag,
    /// One of these.
    Words(&'static [&'static str]),
    /// A cursor, or `earliest`, `latest` or `latest-N`.
    Cursor,
    /// A ticket.
    Ticket,
}

impl Parameter {
    const fn new(name: &'static str, kind: ParameterKind, about: &'static str) -> Parameter {
        Parameter {
            name,
            place: ParameterPlace::Query,
            kind,
            required: false,
            about,
        }
    }

    const fn required(self) -> Parameter {
        Parameter { required: true, ..self }
    }

    const fn in_header(self) -> Parameter {
        Parameter {
            place: ParameterPlace::Header,
            ..self
        }
    }
}

impl Route {
    const fn new(id: RouteId, method: RouteMethod, path: &'static str, need: Need, about: &'static str) -> Route {
        Route {
            id,
            method,
            path,
            need,
            parameters: &[],
            about,
            by_nodes: false,
            appends: false,
        }
    }

    const fn with(self, parameters: &'static [Parameter]) -> Route {
        Route { parameters, ..self }
    }

    const fn by_nodes(self) -> Route {
        Route { by_nodes: true, ..self }
    }

    const fn appends(self) -> Route {
        Route { appends: true, ..self }
    }

    /// Returns the route of a method and a path as it stands in the table. A HEAD is a GET.
    pub fn find(method: &str, path: &str) -> Option<&'static Route> {
        let method = if method == "HEAD" { "GET" } else { method };
        let mut routes = ROUTES.iter();
        routes.find(|route| route.path == path && route.method.name() == method)
    }

    /// Returns the names of its parameters in the query string.
    pub fn query_names(&self) -> impl Iterator<Item = &'static str> {
        let parameters = self.parameters.iter();
        let in_query = parameters.filter(|parameter| parameter.place == ParameterPlace::Query);
        in_query.map(|parameter| parameter.name)
    }

    /// Returns whether a parameter in the query string may be given more than once.
    pub fn may_repeat(&self, name: &str) -> bool {
        let found = self.parameters.iter().find(|parameter| parameter.name == name);
        found.is_some_and(|parameter| matches!(parameter.kind, ParameterKind::Texts(..)))
    }

    /// Returns the bounds of an integer among its parameters; a parameter that it does not have has none.
    pub fn bounds(&self, name: &str) -> RangeInclusive<u64> {
        let found = self.parameters.iter().find(|parameter| parameter.name == name);
        match found.map(|parameter| &parameter.kind) {
            Some(ParameterKind::Integer(bounds)) => bounds.clone(),
            _ => 0..=u64::MAX,
        }
    }
}

/// How many events one request may have.
pub const EVENTS: RangeInclusive<usize> = 1..=10_000;
/// How many users one question may name.
pub const USERS: RangeInclusive<usize> = 1..=1_000;
/// How many of a user's changes are given at most, and how many if nothing is said.
pub const CHANGES: RangeInclusive<u64> = 1..=100;
pub const CHANGES_DEFAULT: u64 = 20;
/// How many incidents are given at most, and how many if nothing is said.
pub const INCIDENTS: RangeInclusive<u64> = 1..=100;
pub const INCIDENTS_DEFAULT: u64 = 20;
/// How many users one query of Tencent Cloud IM may name.
pub const TIM_ACCOUNTS: RangeInclusive<usize> = 1..=500;
/// How many users or gateways one subscription may name.
pub const FILTER_MAX: usize = 1_000;

const ID: Parameter = Parameter::new("id", ParameterKind::Text(bounds::USER_BYTES), "The user.").required();
const AT_LEAST: Parameter = Parameter::new(
    "at_least",
    ParameterKind::Integer(0..=i64::MAX as u64),
    "Waits up to five seconds until this offset of the user's partition is folded.",
);
const FROM: Parameter = Parameter::new(
    "from",
    ParameterKind::Time,
    "Leaves out intervals that began before this time and ended by then.",
);
const TO: Parameter = Parameter::new(
    "to",
    ParameterKind::Time,
    "Leaves out intervals that began after this time.",
);
const AT: Parameter = Parameter::new("at", ParameterKind::Time, "At this time; now if not given.");
const LIMIT: Parameter = Parameter::new("limit", ParameterKind::Integer(CHANGES), "How many; 20 if not given.");
const PARTITION: Parameter = Parameter::new(
    "partition",
    ParameterKind::Integer(0..=u32::MAX as u64),
    "Only this partition.",
);
const AFTER: Parameter = Parameter::new(
    "after",
    ParameterKind::Cursor,
    "Where to begin: `latest` (the default), `latest-50`, `earliest`, or a cursor.",
);
/// The cursor of a client that reconnects. Polyfills that cannot send the header have one of the first two.
const LAST_EVENT_ID: [Parameter; 3] = [
    Parameter::new(
        "lastEventId",
        ParameterKind::Cursor,
        "The cursor of a client that reconnects and cannot send the header `Last-Event-ID`. Takes precedence over `after`.",
    ),
    Parameter::new("Last-Event-ID", ParameterKind::Cursor, "The same as `lastEventId`."),
    Parameter::new(
        "Last-Event-ID",
        ParameterKind::Cursor,
        "The cursor of a client that reconnects. Takes precedence over every other one.",
    )
    .in_header(),
];
const TICKET: Parameter = Parameter::new(
    "ticket",
    ParameterKind::Ticket,
    "A ticket of `POST /v1/tickets`, in place of a bearer token.",
);

/// Who calls a command of Tencent Cloud IM. It has more parameters, which mean nothing here.
const SIGNED: [Parameter; 3] = [
    Parameter::new("sdkappid", ParameterKind::Integer(1..=u32::MAX as u64), "The app.").required(),
    Parameter::new(
        "identifier",
        ParameterKind::Text((1, 1_024)),
        "An administrator of the app.",
    )
    .required(),
    Parameter::new(
        "usersig",
        ParameterKind::Text((1, 8_192)),
        "The signature of the administrator, a UserSig of version 2.",
    )
    .required(),
];

/// The parameters of a subscription that is filtered by its first one.
const fn followed(filter: Parameter) -> [Parameter; 7] {
    let [camel, dashed, header] = LAST_EVENT_ID;
    [filter, PARTITION, AFTER, camel, dashed, TICKET, header]
}

/// The parameters of a subscription whose filter is a body.
const fn followed_by_body() -> [Parameter; 2] {
    let [_, _, header] = LAST_EVENT_ID;
    [TICKET, header]
}

/// See the module.
pub static ROUTES: [Route; RouteId::TimKick as usize + 1] = {
    use Need::{Follow, Metrics, Nothing, Publish, Read, UserSig};
    use RouteMethod::{Get, Post};
    [
        Route::new(
            RouteId::Events,
            Post,
            "/v1/events",
            Publish,
            "Appends events and answers when they are durable.",
        )
        .with(
            &const {
                [
                    Parameter::new(
                        "strict",
                        ParameterKind::Flag,
                        "Refuses events with fields that no event has.",
                    ),
                    Parameter::new(
                        "wait",
                        ParameterKind::Words(&["durable", "applied"]),
                        "`applied` answers when the events are also folded and committed, with the outcome of each.",
                    ),
                ]
            },
        )
        .appends(),
        Route::new(
            RouteId::User,
            Get,
            "/v1/users/{user}",
            Read,
            "Returns the current state of a user.",
        )
        .with(&const { [AT_LEAST] }),
        Route::new(
            RouteId::UserById,
            Get,
            "/v1/user",
            Read,
            "Returns the current state of a user, for any id.",
        )
        .with(&const { [AT_LEAST, ID] })
        .by_nodes(),
        Route::new(
            RouteId::UsersQuery,
            Post,
            "/v1/users/query",
            Read,
            "Returns the current state of many users.",
        )
        .by_nodes(),
        Route::new(
            RouteId::UserChanges,
            Get,
            "/v1/users/{user}/changes",
            Read,
            "Returns a user's newest changes.",
        )
        .with(&const { [LIMIT] }),
        Route::new(
            RouteId::UserChangesById,
            Get,
            "/v1/user/changes",
            Read,
            "Returns a user's newest changes, for any id.",
        )
        .with(&const { [LIMIT, ID] })
        .by_nodes(),
        Route::new(
            RouteId::UserHistory,
            Get,
            "/v1/users/{user}/history",
            Read,
            "Returns which status a user and its devices had, and when.",
        )
        .with(&const { [FROM, TO] }),
        Route::new(
            RouteId::UserHistoryById,
            Get,
            "/v1/user/history",
            Read,
            "Returns which status a user and its devices had, and when, for any id.",
        )
        .with(&const { [FROM, TO, ID] })
        .by_nodes(),
        Route::new(
            RouteId::UserWhy,
            Get,
            "/v1/users/{user}/why",
            Read,
            "Returns the records of the log behind a user's status; null if nothing was known of the user.",
        )
        .with(&const { [AT] }),
        Route::new(
            RouteId::UserWhyById,
            Get,
            "/v1/user/why",
            Read,
            "Returns the records of the log behind a user's status, for any id; null if nothing was known of the user.",
        )
        .with(&const { [AT, ID] })
        .by_nodes(),
        Route::new(
            RouteId::At,
            Get,
            "/v1/at",
            Read,
            "Returns how many users and devices had which status at a time.",
        )
        .with(
            &const {
                [
                    Parameter::new("time", ParameterKind::Time, "The time.").required(),
                    Parameter::new(
                        "as_known",
                        ParameterKind::Flag,
                        "As this engine would have answered then, without what was found out later.",
                    ),
                ]
            },
        )
        .by_nodes(),
        Route::new(
            RouteId::Changes,
            Get,
            "/v1/changes",
            Follow,
            "Subscribes to changes, as server-sent events.",
        )
        .with(
            &const {
                followed(Parameter::new(
                    "user",
                    ParameterKind::Texts(bounds::USER_BYTES, FILTER_MAX),
                    "Only changes of this user.",
                ))
            },
        ),
        Route::new(
            RouteId::Kicks,
            Get,
            "/v1/kicks",
            Follow,
            "Subscribes to kicks, as server-sent events.",
        )
        .with(
            &const {
                followed(Parameter::new(
                    "gateway",
                    ParameterKind::Texts(bounds::GATEWAY_BYTES, FILTER_MAX),
                    "Only kicks for this gateway.",
                ))
            },
        ),
        Route::new(
            RouteId::ChangesQuery,
            Post,
            "/v1/changes/query",
            Follow,
            "Subscribes to changes, with the filter as a body.",
        )
        .with(&const { followed_by_body() }),
        Route::new(
            RouteId::KicksQuery,
            Post,
            "/v1/kicks/query",
            Follow,
            "Subscribes to kicks, with the filter as a body.",
        )
        .with(&const { followed_by_body() }),
        Route::new(
            RouteId::Tickets,
            Post,
            "/v1/tickets",
            Read,
            "Returns a ticket, with which a browser opens a subscription.",
        ),
        Route::new(
            RouteId::Policy,
            Get,
            "/v1/policy",
            Read,
            "Returns the policy in force, and since when each partition has it.",
        )
        .by_nodes(),
        Route::new(
            RouteId::Gateways,
            Get,
            "/v1/gateways",
            Read,
            "Returns the gateways with epoch and lease.",
        )
        .by_nodes(),
        Route::new(
            RouteId::Stats,
            Get,
            "/v1/stats",
            Read,
            "Returns counts and the state of each partition.",
        )
        .by_nodes(),
        Route::new(
            RouteId::StatsHistory,
            Get,
            "/v1/stats/history",
            Read,
            "Returns how many users were online during the last hour.",
        )
        .by_nodes(),
        Route::new(
            RouteId::Incidents,
            Get,
            "/v1/incidents",
            Read,
            "Returns the last mass departures, newest first.",
        )
        .with(
            &const {
                [Parameter::new(
                    "limit",
                    ParameterKind::Integer(INCIDENTS),
                    "How many; 20 if not given.",
                )]
            },
        ),
        Route::new(
            RouteId::Edge,
            Get,
            "/v1/edge",
            Read,
            "Returns where clients connect, if this process has a gateway.",
        ),
        Route::new(
            RouteId::Metrics,
            Get,
            "/metrics",
            Metrics,
            "Returns metrics in Prometheus' text format.",
        ),
        Route::new(
            RouteId::Healthz,
            Get,
            "/healthz",
            Nothing,
            "Answers `ok` while the process answers.",
        ),
        Route::new(
            RouteId::Readyz,
            Get,
            "/readyz",
            Nothing,
            "Answers `ready` while every partition of this node is live, or says what is wrong.",
        ),
        Route::new(
            RouteId::OpenApi,
            Get,
            "/openapi.json",
            Nothing,
            "Returns the document that describes this interface.",
        ),
        Route::new(RouteId::Page, Get, "/", Nothing, "Returns the console's page."),
        Route::new(
            RouteId::RollcallJs,
            Get,
            "/rollcall.js",
            Nothing,
            "Returns the browser's client.",
        ),
        Route::new(
            RouteId::ConsoleFile,
            Get,
            "/console/{file}",
            Nothing,
            "Returns a script or the style sheet of the console.",
        ),
        Route::new(
            RouteId::Outcomes,
            Post,
            "/v1/outcomes",
            Publish,
            "Returns outcomes of events; only nodes of a cluster use this route.",
        )
        .by_nodes(),
        Route::new(
            RouteId::TimQueryOnlineStatus,
            Post,
            "/v4/openim/query_online_status",
            UserSig,
            "Returns the status of users, as Tencent Cloud IM does.",
        )
        .with(&SIGNED),
        Route::new(
            RouteId::TimQueryState,
            Post,
            "/v4/openim/querystate",
            UserSig,
            "Returns the status of users, as the older command of Tencent Cloud IM does.",
        )
        .with(&SIGNED),
        Route::new(
            RouteId::TimKick,
            Post,
            "/v4/im_open_login_svc/kick",
            UserSig,
            "Logs out all devices of a user, as Tencent Cloud IM does.",
        )
        .with(&SIGNED)
        .appends(),
    ]
};

// An id is the index of its entry.
const _: () = {
    let mut index = 0;
    while index < ROUTES.len() {
        assert!(
            ROUTES[index].id as usize == index,
            "the table is in the order of RouteId"
        );
        index += 1;
    }
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_found_by_its_method_and_path_alone() {
        for route in &ROUTES {
            let found = Route::find(route.method.name(), route.path).expect("it is in the table");
            assert_eq!(found.id, route.id);
        }
        assert!(Route::find("HEAD", "/v1/stats").is_some());
        assert!(Route::find("POST", "/v1/stats").is_none());
        assert!(Route::find("GET", "/v1/events").is_none());
        assert!(Route::find("GET", "/v1/stats/").is_none());
    }
}
