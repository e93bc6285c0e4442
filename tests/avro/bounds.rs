//! What is refused: every bound of `docs/rules.md` section 3, missing fields, unknown names.

use super::oracle;
use apache_avro::Schema as AvroSchema;
use apache_avro::types::Value;
use rollcall::presence::event::bounds;
use rollcall::schema::avro::*;

/// Reads an event as a careless publisher may write it: any fields under any type.
fn judge(kind: &str, fields: &[(&str, Value)]) -> Result<(), String> {
    let beats_aside = |name: &str| {
        fields
            .iter()
            .find(|(field, _)| *field == name)
            .map(|(_, value)| value.clone())
    };
    let AvroSchema::Record(schema) = AvroSchema::parse_str(Schema::Event.json()).unwrap() else {
        unreachable!()
    };
    let all = schema.fields.iter().map(|field| {
        let value = match (field.name.as_str(), beats_aside(&field.name)) {
            ("type", _) => Value::String(kind.to_owned()),
            (_, Some(value)) => Value::Union(1, Box::new(value)),
            (_, None) => Value::Union(0, Box::new(Value::Null)),
        };
        (field.name.clone(), value)
    });
    let all = Value::Record(all.collect());
    let mut value = Vec::new();
    frame(Schema::Event, &mut value);
    value.extend(oracle::write(&AvroSchema::Record(schema.clone()), all));
    decode_event(&value).map(drop).map_err(|error| error.to_string())
}

fn text(length: usize) -> Value {
    Value::String("x".repeat(length))
}

fn link() -> Vec<(&'static str, Value)> {
    vec![
        ("user", text(1)),
        ("platform", text(1)),
        ("device", text(1)),
        ("gateway", text(1)),
        ("epoch", Value::Long(0)),
        ("conn", Value::Long(0)),
    ]
}

fn with(mut fields: Vec<(&'static str, Value)>, name: &'static str, value: Value) -> Vec<(&'static str, Value)> {
    fields.retain(|(field, _)| *field != name);
    fields.push((name, value));
    fields
}

#[test]
fn every_bound_of_an_event_s_text_holds_at_both_ends_and_the_error_names_it() {
    let beat = |name: &'static str, length: usize| {
        let field = |field: &'static str| (field.to_owned(), if field == name { text(length) } else { text(1) });
        let fields = vec![
            field("user"),
            field("platform"),
            field("device"),
            ("conn".to_owned(), Value::Long(0)),
        ];
        vec![
            ("gateway", text(1)),
            ("epoch", Value::Long(0)),
            ("beats", Value::Array(vec![Value::Record(fields)])),
        ]
    };
    let connect = |name, length| {
        with(
            with(link(), "intent", Value::String("login".into())),
            name,
            text(length),
        )
    };
    type Fields = dyn Fn(&'static str, usize) -> Vec<(&'static str, Value)>;
    let cases: [(&str, &'static str, (usize, usize), &Fields); 12] = [
        ("heartbeat", "user", bounds::USER_BYTES, &|name, length| {
            with(link(), name, text(length))
        }),
        ("logout", "platform", bounds::PLATFORM_BYTES, &|name, length| {
            with(link(), name, text(length))
        }),
        ("background", "device", bounds::DEVICE_BYTES, &|name, length| {
            with(link(), name, text(length))
        }),
        ("foreground", "gateway", bounds::GATEWAY_BYTES, &|name, length| {
            with(link(), name, text(length))
        }),
        ("connect", "client", bounds::CLIENT_BYTES, &connect),
        ("custom_status", "text", bounds::STATUS_TEXT_BYTES, &|name, length| {
            with(link(), name, text(length))
        }),
        ("heartbeats", "user", bounds::USER_BYTES, &beat),
        ("heartbeats", "platform", bounds::PLATFORM_BYTES, &beat),
        ("heartbeats", "device", bounds::DEVICE_BYTES, &beat),
        ("kick", "platform", bounds::PLATFORM_BYTES, &|name, length| {
            with(link(), name, text(length))
        }),
        ("kick", "device", bounds::DEVICE_BYTES, &|name, length| {
            with(link(), name, text(length))
        }),
        ("forget", "user", bounds::USER_BYTES, &|name, length| {
            with(link(), name, text(length))
        }),
    ];
    for (kind, name, (least, most), fields) in cases {
        assert_eq!(judge(kind, &fields(name, least)), Ok(()), "{kind} {name}");
        assert_eq!(judge(kind, &fields(name, most)), Ok(()), "{kind} {name}");
        for length in [least - 1, most + 1] {
            let error = judge(kind, &fields(name, length)).unwrap_err();
            let expected = format!("{name} must have {least} to {most} bytes, not {length}");
            assert!(error.ends_with(&expected), "{kind}: {error}");
            assert_eq!(error.starts_with("beats[0]: "), kind == "heartbeats", "{error}");
        }
    }
}

#[test]
fn every_bound_of_an_event_s_numbers_holds_at_both_ends_and_the_error_names_it() {
    for (kind, name, most) in [
        ("heartbeat", "epoch", bounds::NUMBER_MAX),
        ("heartbeat", "conn", bounds::NUMBER_MAX),
        ("lease", "ttl_ms", bounds::TTL_MS_MAX),
    ] {
        let judge = |number: i64| judge(kind, &with(link(), name, Value::Long(number)));
        assert_eq!(judge(0), Ok(()));
        assert_eq!(judge(most as i64), Ok(()));
        assert_eq!(judge(-1), Err(format!("{name} must be 0 to {most}, not -1")));
        if let Ok(above) = i64::try_from(most + 1) {
            assert_eq!(judge(above), Err(format!("{name} must be 0 to {most}, not {above}")));
        }
    }
    let beats = |count: usize| {
        let beat = ["user", "platform", "device"].map(|name| (name.to_owned(), text(1)));
        let beat = [&beat[..], &[("conn".to_owned(), Value::Long(0))]].concat();
        judge(
            "heartbeats",
            &with(link(), "beats", Value::Array(vec![Value::Record(beat); count])),
        )
    };
    assert_eq!(beats(1), Ok(()));
    assert_eq!(beats(10_000), Ok(()));
    assert_eq!(beats(0), Err("beats must be 1 to 10000, not 0".to_owned()));
    assert_eq!(beats(10_001), Err("beats must be 1 to 10000, not 10001".to_owned()));
}

#[test]
fn every_field_that_a_type_needs_is_missed() {
    let name = |name: &str| Value::String(name.to_owned());
    let beats = || {
        let fields = ["user", "platform", "device"].map(|field| (field.to_owned(), text(1)));
        Value::Array(vec![Value::Record(
            [&fields[..], &[("conn".to_owned(), Value::Long(0))]].concat(),
        )])
    };
    const LINK: [&str; 6] = ["user", "platform", "device", "gateway", "epoch", "conn"];
    let all = |reason| {
        [
            link(),
            vec![
                ("intent", name("login")),
                ("reason", name(reason)),
                ("beats", beats()),
                ("text", text(1)),
                ("ttl_ms", Value::Long(0)),
                ("policy", name("{}")),
            ],
        ]
        .concat()
    };
    let needs: [(&str, Vec<&str>); 13] = [
        ("connect", [&LINK[..], &["intent"]].concat()),
        ("heartbeat", LINK.to_vec()),
        ("heartbeats", vec!["gateway", "epoch", "beats"]),
        ("background", LINK.to_vec()),
        ("foreground", LINK.to_vec()),
        ("disconnect", [&LINK[..], &["reason"]].concat()),
        ("logout", LINK.to_vec()),
        // Without its platform, a device is refused with a sentence of its own.
        ("kick", vec!["user"]),
        ("custom_status", vec!["user"]),
        ("forget", vec!["user"]),
        ("lease", vec!["gateway", "epoch", "ttl_ms"]),
        ("policy", vec!["policy"]),
        ("tick", vec![]),
    ];
    for (kind, needed) in needs {
        let fields = all("exit");
        assert_eq!(judge(kind, &fields), Ok(()), "{kind}");
        for (missing, _) in &fields {
            let rest: Vec<_> = fields.iter().filter(|(field, _)| field != missing).cloned().collect();
            let expected = match (needed.contains(missing), kind, *missing) {
                (true, _, _) => Err(format!("{missing} is missing")),
                (false, "kick", "platform") => Err("platform must be given where device is".to_owned()),
                (false, _, _) => Ok(()),
            };
            assert_eq!(judge(kind, &rest), expected, "{kind} without {missing}");
        }
    }
}

#[test]
fn unknown_names_and_bad_policies_are_told_in_a_sentence() {
    assert_eq!(
        judge("Tick", &[]),
        Err(r#"type: there is none named "Tick""#.to_owned())
    );
    let name = |name: &str| Value::String(name.to_owned());
    assert_eq!(
        judge("connect", &with(link(), "intent", name("log in"))),
        Err(r#"intent must be login or resume, not "log in""#.to_owned())
    );
    assert_eq!(
        judge("disconnect", &with(link(), "reason", name(""))),
        Err(r#"reason must be closed or exit, not """#.to_owned())
    );
    assert_eq!(judge("policy", &[("policy", name(r#"{"rules":1}"#))]), Ok(()));
    let error = judge("policy", &[("policy", name(r#"{"rules":2}"#))]).unwrap_err();
    assert!(error.starts_with("policy: rules must be 1"), "{error}");
    let error = judge("policy", &[("policy", name("[1 2]"))]).unwrap_err();
    assert!(error.starts_with("policy: not JSON"), "{error}");
}

#[test]
fn fields_that_a_type_does_not_need_are_ignored_whatever_they_hold() {
    let strange = [
        ("user", text(1_000)),
        ("epoch", Value::Long(-5)),
        ("intent", text(3)),
        ("policy", text(9)),
        ("beats", Value::Array(vec![])),
    ];
    assert_eq!(judge("tick", &strange), Ok(()));
}
