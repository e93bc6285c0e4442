//! The document that describes the HTTP interface (OpenAPI 3.1), made of the table of routes and the types.
//!
//! It is served as `GET /openapi.json` without a token: it contains what the documentation contains and nothing about this
//! server, not even its version, nor whether it serves the commands of Tencent Cloud IM.

use super::answers::{
    ChangeData, Edge, EventsAnswer, Explanation, Gateways, History, Incidents, KickData, Outcomes, PastTotals,
    PolicyAnswer, Stats, Ticket, User, UserChanges, UserHistory, Users,
};
use super::error::ErrorAnswer;
use super::requests::{FollowQuery, NewEvent, OutcomesQuery, TicketRequest, UsersQuery};
use super::routes::{Need, Parameter, ParameterKind, ParameterPlace, ROUTES, Route, RouteId, RouteMethod};
use super::sse;
use super::tim::{TimAnswer, TimKick, TimQuery, TimQueryAnswer};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

/// What a route takes and gives.
struct Bodies {
    /// A JSON body, and whether it must be there.
    request: Option<(Value, bool)>,
    /// The media types that a success may have, and its schema in each.
    answer: (&'static [&'static str], Value),
    /// Of a stream: the data of its events, by name.
    events: Option<Value>,
}

/// Returns the document.
pub fn document() -> Value {
    let settings = || {
        SchemaSettings::draft2020_12().with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        })
    };
    // In a request fields with a default may be missing; in an answer they are always there.
    let mut requests = settings().for_deserialize().into_generator();
    let mut answers = settings().for_serialize().into_generator();
    let error = schema::<ErrorAnswer>(&mut answers);
    let mut paths = Map::new();
    for route in &ROUTES {
        let bodies = bodies(route.id, &mut requests, &mut answers);
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        let method = match route.method {
            RouteMethod::Get => "get",
            RouteMethod::Post => "post",
        };
        path[method] = operation(route, bodies, &error);
    }
    let mut schemas = answers.take_definitions(true);
    schemas.extend(requests.take_definitions(true));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Rollcall",
            "version": "1",
            "description": "Events in, presence out. Times are milliseconds. Readers skip fields that they do not know: \
                            later versions may add some. A server without a token file requires no token and serves only its own machine.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "A token of the server's token file, or of its issuer."},
                "ticket": {
                    "type": "apiKey",
                    "in": "query",
                    "name": "ticket",
                    "description": "A ticket of `POST /v1/tickets`, for subscriptions.",
                },
            },
        },
    })
}

fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    generator.subschema_for::<T>().into()
}

fn bodies(id: RouteId, requests: &mut SchemaGenerator, answers: &mut SchemaGenerator) -> Bodies {
    let json = |answer| Bodies {
        request: None,
        answer: (&["application/json"], answer),
        events: None,
    };
    let text = |media: &'static [&'static str]| Bodies {
        request: None,
        answer: (media, json!({"type": "string"})),
        events: None,
    };
    let with = |request, bodies| Bodies {
        request: Some((request, true)),
        ..bodies
    };
    let error = schema::<ErrorAnswer>(answers);
    let stream = |name: &str, data| {
        let mut events = json!({"error": error.clone(), "refused": error});
        events[name] = data;
        Bodies {
            events: Some(events),
            ..text(&[sse::CONTENT_TYPE])
        }
    };
    match id {
        RouteId::Events => {
            let mut events = schema::<Vec<NewEvent>>(requests);
            events["minItems"] = json!(super::routes::EVENTS.start());
            events["maxItems"] = json!(super::routes::EVENTS.end());
            with(events, json(schema::<EventsAnswer>(answers)))
        }
        RouteId::User | RouteId::UserById => json(schema::<User>(answers)),
        RouteId::UsersQuery => with(schema::<UsersQuery>(requests), json(schema::<Users>(answers))),
        RouteId::UserChanges | RouteId::UserChangesById => json(schema::<UserChanges>(answers)),
        RouteId::UserHistory | RouteId::UserHistoryById => json(schema::<UserHistory>(answers)),
        RouteId::UserWhy | RouteId::UserWhyById => json(schema::<Option<Explanation>>(answers)),
        RouteId::At => json(schema::<PastTotals>(answers)),
        RouteId::Changes => stream("change", schema::<ChangeData>(answers)),
        RouteId::Kicks => stream("kick", schema::<KickData>(answers)),
        RouteId::ChangesQuery => with(
            schema::<FollowQuery>(requests),
            stream("change", schema::<ChangeData>(answers)),
        ),
        RouteId::KicksQuery => with(
            schema::<FollowQuery>(requests),
            stream("kick", schema::<KickData>(answers)),
        ),
        RouteId::Tickets => Bodies {
            request: Some((schema::<TicketRequest>(requests), false)),
            ..json(schema::<Ticket>(answers))
        },
        RouteId::Policy => json(schema::<PolicyAnswer>(answers)),
        RouteId::Gateways => json(schema::<Gateways>(answers)),
        RouteId::Stats => json(schema::<Stats>(answers)),
        RouteId::StatsHistory => json(schema::<History>(answers)),
        RouteId::Incidents => json(schema::<Incidents>(answers)),
        RouteId::Edge => json(schema::<Edge>(answers)),
        RouteId::Outcomes => with(schema::<OutcomesQuery>(requests), json(schema::<Outcomes>(answers))),
        RouteId::Metrics => text(&["text/plain"]),
        RouteId::Healthz | RouteId::Readyz => text(&["text/plain"]),
        RouteId::OpenApi => json(json!({"type": "object", "additionalProperties": true})),
        RouteId::Page => text(&["text/html"]),
        RouteId::RollcallJs => text(&["text/javascript"]),
        RouteId::ConsoleFile => text(&["text/javascript", "text/css"]),
        RouteId::TimQueryOnlineStatus | RouteId::TimQueryState => with(
            schema::<TimQuery>(requests),
            json(schema::<TimQueryAnswer<'_>>(answers)),
        ),
        RouteId::TimKick => with(schema::<TimKick>(requests), json(schema::<TimAnswer<'_>>(answers))),
    }
}

fn operation(route: &Route, bodies: Bodies, error: &Value) -> Value {
    let mut parameters: Vec<Value> = in_path(route.path).map(path_parameter).collect();
    // The ticket is among the security schemes.
    let others = route.parameters.iter();
    let others = others.filter(|parameter| !matches!(parameter.kind, ParameterKind::Ticket));
    parameters.extend(others.map(described));
    let (media, answer) = bodies.answer;
    let mut content = Map::new();
    for media in media {
        content.insert((*media).to_owned(), json!({"schema": answer}));
    }
    let mut success = json!({"description": "It worked.", "content": content});
    if let Some(events) = bodies.events {
        success["description"] = json!("A stream of server-sent events; `x-events` has the data of each by its name.");
        success["x-events"] = events;
    }
    let refused = |why: &str| json!({"description": why, "content": {"application/json": {"schema": error}}});
    let mut responses = json!({"200": success, "default": refused("The request failed; `code` says why.")});
    // Who has a UserSig looks at the body and not at the status, which is always 200.
    let has_statuses = route.need != Need::UserSig;
    if has_statuses && (bodies.request.is_some() || !parameters.is_empty()) {
        responses["400"] = refused("The request is wrong.");
    }
    let (scope, security) = match route.need {
        Need::Nothing => ("No token.", json!([])),
        Need::Read => ("The scope `read`.", json!([{"bearer": []}])),
        Need::Follow => (
            "The scope `read`, or a ticket.",
            json!([{"bearer": []}, {"ticket": []}]),
        ),
        Need::Publish => ("The scope `publish`.", json!([{"bearer": []}])),
        Need::Metrics => ("The scope `metrics` or `read`.", json!([{"bearer": []}])),
        Need::UserSig => (
            "A UserSig, and a server with `--tim-app`. The status is 200 also if the command failed.",
            json!([]),
        ),
    };
    if has_statuses && route.need != Need::Nothing {
        responses["401"] = refused("No token, or one that is not known.");
        responses["403"] = refused("The token lacks the scope.");
    }
    let mut operation = json!({
        "operationId": operation_id(route.id),
        "summary": route.about,
        "description": format!("Needs: {scope}"),
        "security": security,
        "responses": responses,
    });
    if !parameters.is_empty() {
        operation["parameters"] = json!(parameters);
    }
    if let Some((body, required)) = bodies.request {
        operation["requestBody"] = json!({"required": required, "content": {"application/json": {"schema": body}}});
    }
    operation
}

/// `UserById` to `user_by_id`.
fn operation_id(id: RouteId) -> String {
    let mut name = String::new();
    for letter in format!("{id:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.extend(letter.to_lowercase());
    }
    name
}

/// The names of the segments that vary.
fn in_path(path: &str) -> impl Iterator<Item = &str> {
    path.split('/')
        .filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
}

fn path_parameter(name: &str) -> Value {
    json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "minLength": 1}})
}

fn described(parameter: &Parameter) -> Value {
    let text = |(least, most): (usize, usize)| json!({"type": "string", "minLength": least, "maxLength": most});
    let schema = match &parameter.kind {
        ParameterKind::Integer(bounds) => {
            json!({"type": "integer", "minimum": bounds.start(), "maximum": bounds.end()})
        }
        ParameterKind::Text(bytes) => text(*bytes),
        ParameterKind::Texts(bytes, most) => json!({"type": "array", "items": text(*bytes), "maxItems": most}),
        ParameterKind::Flag => json!({"type": "boolean"}),
        ParameterKind::Words(words) => json!({"type": "string", "enum": words}),
        ParameterKind::Cursor | ParameterKind::Ticket | ParameterKind::Time => json!({"type": "string"}),
    };
    let place = match parameter.place {
        ParameterPlace::Query => "query",
        ParameterPlace::Header => "header",
    };
    json!({
        "name": parameter.name,
        "in": place,
        "required": parameter.required,
        "description": parameter.about,
        "schema": schema,
    })
}
