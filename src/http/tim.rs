//! The Tencent-compatible API: three routes for servers that were written for Tencent Cloud IM (rules, section 10).
//!
//! The caller is identified by a UserSig of an administrator of the app, not by a bearer token, and may run on any
//! host. Every response has the status 200 with `ActionStatus`, `ErrorCode` and `ErrorInfo`, since such clients look at
//! these.

use super::found::{Found, FoundUser};
use super::payload::{Budget, Payload};
use super::peers::Asker;
use super::query::parameter;
use super::traced::TracedRequest;
use super::users::look_up;
use super::usersig::{self, SignatureRefusal};
use super::{ApiError, AppState, ingest};
use crate::api::answers::User;
use crate::api::routes::{ROUTES, RouteId, TIM_ACCOUNTS};
use crate::api::tim::{TimAnswer, TimDetail, TimQueryAnswer, TimUser, TimUserError};
use crate::clock::Clock;
use crate::config::{Tim, TimUnknown};
use crate::engine::UserRow;
use crate::presence::Status;
use crate::presence::event::{Event, Target, bounds};
use crate::schema::unique_keys::UniqueKeys;
use axum::Router;
use axum::extract::{FromRef, FromRequestParts, RawQuery, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, any, post};
use serde_json::Value;
use serde_json::value::RawValue;
use std::sync::Arc;

/// The largest body, in bytes: far more than that many accounts take.
const BODY_BYTES_MAX: usize = 1 << 20;

/// The command that appends an event.
const KICK: &str = "/v4/im_open_login_svc/kick";

/// The error codes of the public documentation that are used here.
mod code {
    pub const NOT_READ: u32 = 60_002;
    pub const BAD_APP: u32 = 60_006;
    pub const NO_SUCH_COMMAND: u32 = 60_009;
    pub const NO_APP: u32 = 60_012;
    pub const EXPIRED: u32 = 70_001;
    pub const NO_USERSIG: u32 = 70_002;
    pub const BAD_USERSIG: u32 = 70_003;
    pub const OTHER_IDENTIFIER: u32 = 70_013;
    pub const OTHER_APP: u32 = 70_014;
    pub const UNKNOWN_USER: u32 = 70_107;
    pub const KICK_BAD_BODY: u32 = 70_402;
    pub const KICK_NO_ADMIN: u32 = 70_403;
    pub const KICK_FAILED: u32 = 70_500;
    pub const QUERY_BAD_BODY: u32 = 90_001;
    pub const QUERY_BAD_ACCOUNT: u32 = 90_003;
    pub const QUERY_NO_ADMIN: u32 = 90_009;
    pub const QUERY_TOO_MANY: u32 = 90_011;
    pub const QUERY_FAILED: u32 = 90_994;
    pub const TOO_LARGE: u32 = 93_000;
}

/// The configuration that decides who has access, and the clock for the expiry of signatures.
#[derive(Clone)]
pub(super) struct TimAccess {
    tim: Arc<Tim>,
    clock: Arc<dyn Clock>,
}

impl TimAccess {
    pub fn new(tim: Tim, clock: Arc<dyn Clock>) -> TimAccess {
        TimAccess {
            tim: Arc::new(tim),
            clock,
        }
    }
}

/// Returns the handler of a command, or `None` for a route of another module.
fn handler(route: RouteId) -> Option<MethodRouter<TimState>> {
    match route {
        RouteId::TimQueryOnlineStatus => Some(post(query_online_status)),
        RouteId::TimQueryState => Some(post(query_state)),
        RouteId::TimKick => Some(post(kick)),
        _ => None,
    }
}

/// The state of the routes.
#[derive(Clone)]
pub(super) struct TimState {
    pub app: AppState,
    pub terms: TimAccess,
}

impl TimState {
    /// Returns the routes. With a base URL that ends in a slash, a client sends two slashes at the start.
    pub fn router(self) -> Router {
        let nothing = async || Refusal::new(code::NO_SUCH_COMMAND, "this command is not served here");
        let method = async |method: Method| {
            Refusal::new(
                code::NO_SUCH_COMMAND,
                format!("commands are sent with POST, not {method}"),
            )
        };
        let mut router = Router::new();
        for before in ["", "/"] {
            for route in &ROUTES {
                if let Some(handler) = handler(route.id) {
                    router = router.route(&format!("{before}{}", route.path), handler);
                }
            }
            for rest in ["/v4", "/v4/{*command}"] {
                router = router.route(&format!("{before}{rest}"), any(nothing));
            }
        }
        router.method_not_allowed_fallback(method).with_state(self)
    }

    /// Checks that the caller is an administrator of the app. `no_admin` is the error code for every other valid
    /// identifier.
    fn authorize(&self, query: Option<&str>, no_admin: u32) -> Result<(), Refusal> {
        let given = |name| parameter(query, name).unwrap_or_default();
        let app = given("sdkappid");
        if app.is_empty() {
            return Err(Refusal::new(code::NO_APP, "the query string has no sdkappid"));
        }
        let Ok(app) = app.parse::<u64>() else {
            return Err(Refusal::new(code::BAD_APP, "sdkappid must be an integer"));
        };
        if app != self.terms.tim.app {
            return Err(Refusal::new(
                code::OTHER_APP,
                format!("the app {app} is not the one served here"),
            ));
        }
        let identifier = given("identifier");
        let now_s = self.terms.clock.now_ms() / 1_000;
        let verified = usersig::verify(&given("usersig"), app, &self.terms.tim.key, &identifier, now_s);
        verified.map_err(|refused| {
            let (code, info) = match refused {
                SignatureRefusal::Ambiguous => (
                    code::BAD_USERSIG,
                    "the identifier of usersig has a control character, or its userbuf is not Base64; such a signature \
                     could be read in more than one way",
                ),
                SignatureRefusal::Fraction(field) => {
                    let info = format!("{field} of usersig has a fraction; it must be an integer, so round it");
                    return Refusal::new(code::BAD_USERSIG, info);
                }
                SignatureRefusal::Empty => (code::NO_USERSIG, "the query string has no usersig"),
                SignatureRefusal::Unreadable => (
                    code::BAD_USERSIG,
                    "usersig is not a UserSig of version 2, or is truncated",
                ),
                SignatureRefusal::Forged => (code::BAD_USERSIG, "usersig is not signed with the key of this app"),
                SignatureRefusal::Expired => (code::EXPIRED, "usersig has expired; sign a new one"),
                SignatureRefusal::OtherApp => (code::OTHER_APP, "usersig is signed for another sdkappid"),
                SignatureRefusal::OtherIdentifier => {
                    (code::OTHER_IDENTIFIER, "usersig is signed for another identifier")
                }
            };
            Refusal::new(code, info)
        })?;
        if !self.terms.tim.admins.contains(&identifier) {
            let info = format!("{identifier:?} is not an administrator of this app");
            return Err(Refusal::new(no_admin, info));
        }
        Ok(())
    }
}

impl FromRef<TimState> for Budget {
    fn from_ref(desk: &TimState) -> Budget {
        desk.app.budget.clone()
    }
}

/// A caller authorized as an administrator from the query string alone, before the body is read. `NO_ADMIN` is the
/// route's error code for every other valid identifier.
struct Admin<const NO_ADMIN: u32>;

impl<const NO_ADMIN: u32> FromRequestParts<TimState> for Admin<NO_ADMIN> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, desk: &TimState) -> Result<Self, Refusal> {
        desk.authorize(parts.uri.query(), NO_ADMIN).map(|()| Admin)
    }
}

/// A response that is an error.
struct Refusal {
    code: u32,
    info: String,
}

impl Refusal {
    fn new(code: u32, info: impl Into<String>) -> Refusal {
        let info = info.into();
        Refusal { code, info }
    }

    /// A failure of the server. The message is for people; clients retry on any of these codes.
    fn failed(code: u32, api_error: &ApiError) -> Refusal {
        Refusal::new(code, api_error.message())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        super::answer(&TimAnswer::fail(self.code, &self.info))
    }
}

/// Returns the body without the byte order mark that some clients put before it.
fn read_body(payload: &Result<Payload, ApiError>) -> Result<&[u8], Refusal> {
    let payload = payload.as_ref().map_err(|api_error| {
        let code = match api_error.status() {
            StatusCode::PAYLOAD_TOO_LARGE => code::TOO_LARGE,
            _ => code::NOT_READ,
        };
        Refusal::new(code, api_error.message())
    })?;
    if payload.bytes.len() > BODY_BYTES_MAX {
        let info = format!("a body may have at most {BODY_BYTES_MAX} bytes");
        return Err(Refusal::new(code::TOO_LARGE, info));
    }
    Ok(payload.unmarked())
}

/// The newer query command, which names the status `Status`.
async fn query_online_status(
    _: Admin<{ code::QUERY_NO_ADMIN }>,
    State(desk): State<TimState>,
    payload: Result<Payload, ApiError>,
) -> Result<Response, Refusal> {
    answer(&desk, &payload, StatusKey::Status).await
}

/// The older query command, which names the status `State`.
async fn query_state(
    _: Admin<{ code::QUERY_NO_ADMIN }>,
    State(desk): State<TimState>,
    payload: Result<Payload, ApiError>,
) -> Result<Response, Refusal> {
    answer(&desk, &payload, StatusKey::State).await
}

/// Under which key a command has the status of a user.
#[derive(Clone, Copy, PartialEq, Eq)]
enum StatusKey {
    Status,
    State,
}

struct Question {
    accounts: Vec<String>,
    detail: bool,
    custom_status: bool,
}

impl Question {
    fn read(body: &[u8]) -> Result<Question, Refusal> {
        let bad = |info: String| Refusal::new(code::QUERY_BAD_BODY, info);
        let UniqueKeys(value) =
            serde_json::from_slice(body).map_err(|error| bad(format!("the body is not JSON: {error}")))?;
        let object = value
            .as_object()
            .ok_or_else(|| bad("the body must be a JSON object".to_owned()))?;
        let wanted = |name: &str| match object.get(name) {
            None | Some(Value::Null) => Ok(false),
            Some(value) => match value.as_u64() {
                Some(0) => Ok(false),
                Some(1) => Ok(true),
                _ => Err(bad(format!("{name} must be 0 or 1"))),
            },
        };
        let (detail, custom_status) = (wanted("IsNeedDetail")?, wanted("IsReturnCustomStatus")?);
        let missing = || bad("To_Account must have 1 to 500 user ids".to_owned());
        let accounts = match object.get("To_Account") {
            None | Some(Value::Null) => return Err(missing()),
            Some(Value::Array(accounts)) if accounts.is_empty() => return Err(missing()),
            Some(Value::Array(accounts)) => accounts,
            Some(_) => {
                return Err(Refusal::new(
                    code::QUERY_BAD_ACCOUNT,
                    "To_Account must be an array of strings",
                ));
            }
        };
        let most = *TIM_ACCOUNTS.end();
        if accounts.len() > most {
            let info = format!(
                "To_Account has {} user ids, at most {most} may be asked for",
                accounts.len()
            );
            return Err(Refusal::new(code::QUERY_TOO_MANY, info));
        }
        let text = |account: &Value| account.as_str().map(str::to_owned);
        let accounts: Option<Vec<String>> = accounts.iter().map(text).collect();
        let accounts =
            accounts.ok_or_else(|| Refusal::new(code::QUERY_BAD_ACCOUNT, "To_Account must have only strings"))?;
        Ok(Question {
            accounts,
            detail,
            custom_status,
        })
    }
}

/// The fields of a user that commands are answered with.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Presence {
    status: Status,
    custom_status: Option<Box<str>>,
    /// Platform and status of each device.
    devices: Vec<(Box<str>, Status)>,
}

impl FoundUser for Presence {
    fn here() -> impl FnMut(UserRow<'_>) -> Presence + Send + 'static {
        |row: UserRow<'_>| {
            let devices = row.image.devices.iter();
            let devices = devices.map(|device| (device.platform.into(), device.phase.status()));
            Presence {
                status: row.image.status,
                custom_status: row.image.custom_status.map(Box::from),
                devices: devices.collect(),
            }
        }
    }

    fn elsewhere(object: Box<RawValue>) -> serde_json::Result<(String, Presence)> {
        let user: User = serde_json::from_str(object.get())?;
        // A status that only a newer node knows is of no use to clients of this one.
        let status = |name: &str| Status::named(name).unwrap_or(Status::Offline);
        let devices = user.devices.into_iter();
        let devices = devices.map(|device| (device.platform.into_boxed_str(), status(&device.status)));
        let presence = Presence {
            status: status(&user.status),
            custom_status: user.custom_status.map(String::into_boxed_str),
            devices: devices.collect(),
        };
        Ok((user.user, presence))
    }
}

async fn answer(desk: &TimState, payload: &Result<Payload, ApiError>, key: StatusKey) -> Result<Response, Refusal> {
    let question = Question::read(read_body(payload)?)?;
    let found = look_up::<Presence>(&desk.app, &question.accounts, &Asker::caller()).await;
    let found = found.map_err(|api_error| Refusal::failed(code::QUERY_FAILED, &api_error))?;
    let mut results = Vec::new();
    let mut errors = Vec::new();
    for (account, found) in question.accounts.iter().zip(found) {
        match (found, desk.terms.tim.unknown) {
            (Found::Known(presence), _) => results.push((account, Some(presence))),
            (Found::Unknown, TimUnknown::Offline) => results.push((account, None)),
            (Found::Unknown, TimUnknown::Error) => errors.push(TimUserError {
                account,
                code: code::UNKNOWN_USER,
            }),
            // The other users are answered; the client has to ask for this one again.
            (Found::Unread(_), _) => errors.push(TimUserError {
                account,
                code: code::QUERY_FAILED,
            }),
        }
    }
    let users = results.iter().map(|(account, presence)| {
        let presence = presence.as_ref();
        let status = presence.map_or("Offline", |presence| status_name(presence.status));
        let custom_status = presence.and_then(|presence| presence.custom_status.as_deref());
        let detailed = presence.filter(|_| question.detail);
        TimUser {
            account,
            status: (key == StatusKey::Status).then_some(status),
            state: (key == StatusKey::State).then_some(status),
            custom_status: question.custom_status.then(|| custom_status.unwrap_or_default()),
            detail: detailed.map(|presence| details(&presence.devices)).unwrap_or_default(),
        }
    });
    let TimAnswer { status, code, info } = TimAnswer::OK;
    Ok(super::answer(&TimQueryAnswer {
        status,
        code,
        info,
        users: Some(users.collect()),
        errors,
    }))
}

fn status_name(status: Status) -> &'static str {
    match status {
        Status::Online => "Online",
        Status::PushOnline => "PushOnline",
        Status::Offline => "Offline",
    }
}

/// Returns each platform on which the user has a device that is not offline, once, with the greatest status.
fn details(devices: &[(Box<str>, Status)]) -> Vec<TimDetail<'_>> {
    let mut details: Vec<TimDetail<'_>> = Vec::new();
    for (platform, status) in devices {
        let (platform, status) = (platform_name(platform), status_name(*status));
        match details.iter_mut().find(|detail| detail.platform == platform) {
            _ if status == "Offline" => {}
            Some(detail) if status == "Online" => detail.status = status,
            Some(_) => {}
            None => details.push(TimDetail { platform, status }),
        }
    }
    details
}

/// Returns the Tencent name of a platform. A platform that exists only in our policy keeps its name.
fn platform_name(platform: &str) -> &str {
    match platform {
        "iphone" => "iPhone",
        "android" => "Android",
        "web" | "mini_program" => "Web",
        "windows" | "linux" => "PC",
        "ipad" => "iPad",
        "mac" => "Mac",
        other => other,
    }
}

/// Logs out all devices of a user. Responds when the event is in the log.
async fn kick(
    _: Admin<{ code::KICK_NO_ADMIN }>,
    State(desk): State<TimState>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    payload: Result<Payload, ApiError>,
) -> Result<Response, Refusal> {
    let mut traced = TracedRequest::of(KICK, &headers, desk.app.engine.clock());
    let answer = log_out(&desk, query.as_deref(), &payload, traced.as_mut()).await;
    if let Some(traced) = traced {
        let refused = answer.as_ref().err().map(|refusal| refusal.code);
        let failure = refused.filter(|code| *code == code::KICK_FAILED);
        traced.answered(StatusCode::OK, failure.map(|code| code.to_string()));
    }
    answer
}

async fn log_out(
    desk: &TimState,
    query: Option<&str>,
    payload: &Result<Payload, ApiError>,
    traced: Option<&mut TracedRequest>,
) -> Result<Response, Refusal> {
    let body = read_body(payload)?;
    let bad = |info: String| Refusal::new(code::KICK_BAD_BODY, info);
    let UniqueKeys(value) =
        serde_json::from_slice(body).map_err(|error| bad(format!("the body is not JSON: {error}")))?;
    // `Identifier` is the older name of `UserID`.
    let user = value
        .get("UserID")
        .or_else(|| value.get("Identifier"))
        .and_then(Value::as_str);
    let user = user.filter(|user| !user.is_empty());
    let user = user.ok_or_else(|| bad("the body must be an object with UserID, a string".to_owned()))?;
    let failed = |api_error: ApiError| Refusal::failed(code::KICK_FAILED, &api_error);
    let (_, most) = bounds::USER_BYTES;
    let found = match user.len() <= most {
        true => look_up::<Presence>(&desk.app, &[user.to_owned()], &Asker::caller())
            .await
            .map_err(failed)?
            .pop(),
        false => None,
    };
    match found.unwrap_or(Found::Unknown) {
        Found::Known(_) => {
            let event = Event::Kick {
                user: user.into(),
                target: Target::All,
            };
            ingest::append_one(&desk.app, traced, event).await.map_err(failed)?;
            let by = parameter(query, "identifier").unwrap_or_default();
            tracing::info!(?by, kind = "kick", ?user, "administrative event accepted");
        }
        Found::Unread(why) => return Err(Refusal::new(code::KICK_FAILED, why)),
        Found::Unknown if desk.terms.tim.unknown == TimUnknown::Offline => {}
        Found::Unknown => return Err(Refusal::new(code::UNKNOWN_USER, format!("no user {user:?} is known"))),
    }
    Ok(super::answer(&TimAnswer::OK))
}

#[cfg(test)]
mod tests {
    use super::super::found::tests::both;
    use super::*;

    #[test]
    fn a_user_of_another_node_is_answered_as_one_of_this_node() {
        let (here, there) = both::<Presence>();
        assert_eq!(here, there);
        let details = details(&here.devices);
        let details: Vec<(&str, &str)> = details.iter().map(|one| (one.platform, one.status)).collect();
        assert_eq!(details, [("Android", "Online"), ("iPad", "PushOnline")]);
    }
}
