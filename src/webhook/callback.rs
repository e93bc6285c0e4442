//! A change as a State.StateChange callback: its body, and the query string with which it is posted.

use crate::config::Credential;
use crate::presence::Status;
use crate::presence::change::{Cause, Change};
use crate::presence::policy::Policy;
use crate::schema::json::Object;
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;
use url::Url;

const COMMAND: &str = "State.StateChange";

/// The parts of a callback that depend on the receiver.
#[derive(Clone, Debug)]
pub struct Shape {
    /// SdkAppid in the query string, if configured.
    pub app: Option<u64>,
    /// The token with which callbacks are signed, if configured.
    pub token: Option<Credential>,
    /// Whether the end of push_online is posted, which Tencent does not do.
    pub push_expired: bool,
    /// The platforms of kind web: their time-out is posted as a closed link.
    pub web: Vec<String>,
}

impl Shape {
    /// Returns the platforms of kind web in the default policy.
    pub fn default_web() -> Vec<String> {
        let platforms = Policy::default().platforms.into_iter();
        let web = platforms.filter(|(_, platform)| platform.kind == "web");
        web.map(|(name, _)| name).collect()
    }

    /// Returns the body as JSON; `None` if this change has no callback.
    pub fn body(&self, change: &Change) -> Option<Vec<u8>> {
        // Tencent's form is fixed: what it has no place for is not sent.
        let Change {
            id: _,
            seq: _,
            user,
            version: _,
            at,
            logged_at: _,
            cause,
            before: _,
            after: _,
            devices,
            custom_status,
            evidence: _,
            rehearsal: _,
        } = change;
        let is_web = || {
            let device = devices.first();
            device.is_some_and(|device| self.web.iter().any(|web| **web == *device.platform))
        };
        let (action, reason) = match cause {
            Cause::Login | Cause::Resume | Cause::Revive => ("Login", "Register"),
            Cause::Logout | Cause::Kicked | Cause::Forgotten => ("Logout", "Unregister"),
            Cause::Closed | Cause::Exit | Cause::Background | Cause::GatewayLost => ("Disconnect", "LinkClose"),
            Cause::Timeout if is_web() => ("Disconnect", "LinkClose"),
            Cause::Timeout => ("Disconnect", "TimeOut"),
            Cause::CustomStatus => ("CustomStatusChange", "SetCustomStatus"),
            Cause::PushExpired if self.push_expired => ("Disconnect", "TimeOut"),
            Cause::PushExpired => return None,
        };
        let mut info = Vec::new();
        let mut object = Object::new(&mut info);
        object
            .text("Action", action)
            .text("To_Account", user)
            .text("Reason", reason);
        if *cause == Cause::CustomStatus {
            object.text("CustomStatus", custom_status.as_deref().unwrap_or_default());
        }
        object.end();
        let mut body = Vec::new();
        let mut object = Object::new(&mut body);
        object
            .text("CallbackCommand", COMMAND)
            .number("EventTime", at.0)
            .raw("Info", &info);
        // The device that logged in is online after the change. The others went offline: they were displaced.
        let displaced = || {
            let devices = devices.iter().filter(|_| action == "Login");
            devices.filter(|device| device.after == Status::Offline)
        };
        if displaced().next().is_some() {
            object.list("KickedDevice", displaced(), |out, device| {
                Object::new(out).text("Platform", platform_name(&device.platform)).end();
            });
        }
        object.end();
        Some(body)
    }

    /// Returns the receiver's URL with the query parameters that Tencent adds, signed at a time in seconds since 1970.
    pub fn address(&self, to: &Url, change: &Change, now_s: u64) -> Url {
        let mut address = to.clone();
        let mut query = address.query_pairs_mut();
        if let Some(app) = self.app {
            query.append_pair("SdkAppid", &app.to_string());
        }
        let device = change.devices.first();
        let platform = device.map_or("Unknown", |device| platform_name(&device.platform));
        query
            .append_pair("CallbackCommand", COMMAND)
            .append_pair("contenttype", "json")
            .append_pair("OptPlatform", platform);
        if let Some(token) = &self.token {
            query
                .append_pair("Sign", &sign(token, now_s))
                .append_pair("RequestTime", &now_s.to_string());
        }
        drop(query);
        address
    }
}

/// Returns SHA-256 of token and time, in hexadecimal.
fn sign(token: &Credential, now_s: u64) -> String {
    let hash = Sha256::digest(format!("{}{now_s}", token.reveal()));
    hash.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Returns Tencent's name of a platform. Platforms that exist only in our policies keep their names.
fn platform_name(platform: &str) -> &str {
    match platform {
        "android" => "Android",
        "iphone" => "iOS",
        "ipad" => "iPad",
        "mac" => "Mac",
        "windows" => "Windows",
        "linux" => "Linux",
        "web" | "mini_program" => "Web",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presence::change::{DeviceChange, OutputId};
    use crate::presence::{LogTime, Offset, Partition};

    fn change(cause: Cause, devices: &[(&str, Status, Status)]) -> Change {
        let device = |(platform, before, after): &(&str, Status, Status)| DeviceChange {
            platform: (*platform).into(),
            device: "d".into(),
            gateway: "g".into(),
            before: *before,
            after: *after,
        };
        Change {
            id: OutputId {
                partition: Partition(1),
                offset: Offset(2),
                index: 0,
            },
            seq: 1,
            user: "al\"ice".into(),
            version: 3,
            at: LogTime(1_629_883_332_497),
            logged_at: LogTime(1_629_883_332_500),
            cause,
            before: Status::Offline,
            after: Status::Online,
            devices: devices.iter().map(device).collect(),
            custom_status: None,
            evidence: Offset(2),
            rehearsal: None,
        }
    }

    fn shape() -> Shape {
        Shape {
            app: None,
            token: None,
            push_expired: false,
            web: Shape::default_web(),
        }
    }

    fn body(change: &Change) -> String {
        String::from_utf8(shape().body(change).expect("it has a callback")).expect("UTF-8")
    }

    const ON: (&str, Status, Status) = ("iphone", Status::Offline, Status::Online);
    const LOST: (&str, Status, Status) = ("iphone", Status::Online, Status::PushOnline);

    #[test]
    fn every_cause_has_its_action_and_reason() {
        for (cause, action, reason) in [
            (Cause::Login, "Login", "Register"),
            (Cause::Resume, "Login", "Register"),
            (Cause::Revive, "Login", "Register"),
            (Cause::Logout, "Logout", "Unregister"),
            (Cause::Kicked, "Logout", "Unregister"),
            (Cause::Forgotten, "Logout", "Unregister"),
            (Cause::Closed, "Disconnect", "LinkClose"),
            (Cause::Exit, "Disconnect", "LinkClose"),
            (Cause::Background, "Disconnect", "LinkClose"),
            (Cause::GatewayLost, "Disconnect", "LinkClose"),
            (Cause::Timeout, "Disconnect", "TimeOut"),
        ] {
            let expected = format!(
                "{{\"CallbackCommand\":\"State.StateChange\",\"EventTime\":1629883332497,\"Info\":{{\"Action\":\"{action}\",\
                 \"To_Account\":\"al\\\"ice\",\"Reason\":\"{reason}\"}}}}"
            );
            assert_eq!(body(&change(cause, &[LOST])), expected);
        }
        for web in ["web", "mini_program"] {
            let lost = (web, Status::Online, Status::Offline);
            assert!(body(&change(Cause::Timeout, &[lost])).contains(r#""Reason":"LinkClose""#));
        }
        let mut custom = change(Cause::CustomStatus, &[]);
        custom.custom_status = Some("busy".into());
        let expected = r#""Info":{"Action":"CustomStatusChange","To_Account":"al\"ice","Reason":"SetCustomStatus","CustomStatus":"busy"}"#;
        assert!(body(&custom).contains(expected), "{}", body(&custom));
        let expired = change(Cause::PushExpired, &[("iphone", Status::PushOnline, Status::Offline)]);
        assert_eq!(shape().body(&expired), None);
        let shape = Shape {
            push_expired: true,
            ..shape()
        };
        assert!(shape.body(&expired).is_some());
    }

    #[test]
    fn who_was_displaced_by_a_login_is_named() {
        let displaced = [
            ON,
            ("windows", Status::Online, Status::Offline),
            ("android", Status::PushOnline, Status::Offline),
        ];
        let expected = r#","KickedDevice":[{"Platform":"Windows"},{"Platform":"Android"}]}"#;
        assert!(body(&change(Cause::Login, &displaced)).ends_with(expected));
        // A take-over does not change the device that logged in.
        let expected = r#","KickedDevice":[{"Platform":"Windows"}]}"#;
        assert!(body(&change(Cause::Login, &displaced[1..2])).ends_with(expected));
        assert!(!body(&change(Cause::Login, &[ON])).contains("KickedDevice"));
        assert!(!body(&change(Cause::Kicked, &displaced[1..])).contains("KickedDevice"));
    }

    #[test]
    fn the_address_is_signed_as_in_the_public_documents() {
        let mut shape = shape();
        let to = Url::parse("http://127.0.0.1:9/hook?tenant=7").expect("a URL");
        let change = change(Cause::Login, &[ON]);
        let text = |shape: &Shape| shape.address(&to, &change, 1_669_872_112).to_string();
        let plain =
            "http://127.0.0.1:9/hook?tenant=7&CallbackCommand=State.StateChange&contenttype=json&OptPlatform=iOS";
        assert_eq!(text(&shape), plain);
        shape.app = Some(1_400_000_000);
        shape.token = Some(Credential::new("xxxxyyyy"));
        let signed = "&Sign=17773bc39a671d7b9aa835458704d2a6db81360a5940292b587d6d760d484061&RequestTime=1669872112";
        assert!(text(&shape).ends_with(signed), "{}", text(&shape));
        assert!(text(&shape).contains("&SdkAppid=1400000000&"), "{}", text(&shape));
    }
}
