//! Signed heads and proofs: what they say is recomputed here from the changes alone, and whatever is altered proves nothing.

use super::{Files, a_day, change, event, link, parsed, rollcall};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use rollcall::schema::avro;
use serde_json::{Value, json};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = (0..text.len()).step_by(2);
    digits
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

/// The root as docs/audit.md describes it, by recursion.
fn root(leaves: &[Vec<u8>]) -> Vec<u8> {
    if let [leaf] = leaves {
        return digest(&SHA256, &[&[0], &leaf[..]].concat()).as_ref().to_vec();
    }
    let split = (1..)
        .map(|power| 1 << power)
        .find(|split| split * 2 >= leaves.len())
        .unwrap_or(1);
    let split = if leaves.len() == 2 { 1 } else { split };
    let halves = [&[1][..], &root(&leaves[..split]), &root(&leaves[split..])].concat();
    digest(&SHA256, &halves).as_ref().to_vec()
}

struct Signed {
    files: Files,
    head: Value,
}

/// The exit status and standard output.
fn run(arguments: &[&str]) -> (i32, String) {
    let output = rollcall(arguments).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

impl Signed {
    fn new() -> Signed {
        let mut day = a_day();
        for conn in 20..30 {
            let offset = conn - 9;
            let more = link("carol", "web", &format!("tab{conn}"), conn) + ",\"intent\":\"login\"";
            day.push(event(offset, 700_000 + offset, "connect", &more));
        }
        let files = Files::of(&day, None);
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        files.write("key.pem", &key.serialize_pem());
        let (status, text) = run(&[
            "audit",
            "heads",
            "--sign",
            &files.path("key.pem"),
            "--events",
            &files.path("events"),
            "--changes",
            &files.path("changes"),
        ]);
        assert_eq!((status, text.lines().count()), (0, 1), "{text}");
        files.write("head.json", &text);
        let head = parsed(&text);
        let plain = files.audit(&["heads"]).1.remove(0);
        for (field, value) in plain.as_object().unwrap() {
            assert_eq!(&head[field], value);
        }
        assert_eq!(head["key"], hex(key.public_key_raw()));
        Signed { files, head }
    }

    fn prove(&self, id: &str) -> (i32, String) {
        run(&[
            "audit",
            "prove",
            id,
            "--signed",
            &self.files.path("head.json"),
            "--changes",
            &self.files.path("changes"),
        ])
    }

    fn check(&self, proof: &str, more: &[&str]) -> (i32, Value) {
        self.files.write("proof.json", proof);
        let (head, proof) = (self.files.path("head.json"), self.files.path("proof.json"));
        let mut all = vec!["audit", "check-proof", "--json", &proof, "--signed", &head];
        all.extend(more);
        let (status, text) = run(&all);
        (status, if text.is_empty() { Value::Null } else { parsed(&text) })
    }
}

#[test]
fn a_head_is_what_anybody_computes_from_the_changes() {
    let signed = Signed::new();
    let head = &signed.head;
    let leaves = signed.files.lines("changes").into_iter().map(|line| {
        let mut datum = Vec::new();
        avro::write_change_datum(&change(&parsed(&line)), &mut datum);
        datum
    });
    let leaves: Vec<_> = leaves.collect();
    assert!(leaves.len() > 8);
    assert_eq!(head["root"], hex(&root(&leaves)));
    let text = |key: &str| head[key].as_str().map_or_else(|| head[key].to_string(), str::to_owned);
    let fields = ["partition", "next", "changes", "head", "first", "root", "time"];
    let lines: String = fields
        .iter()
        .map(|field| format!("{field} {}\n", text(field)))
        .collect();
    let message = format!("rollcall signed head 1\n{lines}");
    let key = UnparsedPublicKey::new(&ED25519, unhex(&text("key")));
    key.verify(message.as_bytes(), &unhex(&text("signature"))).unwrap();
}

#[test]
fn a_proof_needs_nothing_but_a_signed_head_and_whatever_is_altered_fails() {
    let signed = Signed::new();
    let changes = signed.files.lines("changes");
    let key = signed.head["key"].as_str().unwrap().to_owned();
    for line in &changes {
        let line = parsed(line);
        let (status, proof) = signed.prove(line["id"].as_str().unwrap());
        assert_eq!(status, 0);
        assert_eq!(parsed(&proof)["change"], line);
        let (status, answer) = signed.check(&proof, &["--key", &key]);
        assert_eq!(
            (status, &answer["proven"], &answer["change"]),
            (0, &json!(true), &line),
            "{answer}"
        );
        assert_eq!(
            (&answer["key"], &answer["time"]),
            (&signed.head["key"], &signed.head["time"])
        );
        for (name, value) in line.as_object().unwrap() {
            let mut altered = parsed(&proof);
            altered["change"][name] = match value {
                Value::Number(number) => json!(number.as_u64().unwrap() + 1),
                Value::String(text) if ["before", "after"].contains(&name.as_str()) => {
                    json!(if text == "online" { "offline" } else { "online" })
                }
                Value::String(text) if name == "cause" => json!(if text == "login" { "resume" } else { "login" }),
                Value::String(text) if name == "id" => json!(format!("{text}1")),
                Value::String(text) if name == "type" => json!(format!("{text}x")),
                Value::String(text) => json!(format!("{text}x")),
                Value::Null => json!("x"),
                Value::Array(list) if list.is_empty() => json!([{"platform": "web", "device": "d", "gateway": "g",
                    "before": "offline", "after": "online"}]),
                _ => json!([]),
            };
            let (status, answer) = signed.check(&altered.to_string(), &[]);
            assert!(status != 0 && answer["proven"] != json!(true), "{name}: {answer}");
        }
    }
    let (_, proof) = signed.prove(parsed(&changes[3])["id"].as_str().unwrap());
    let not_proven = |proof: Value, more: &[&str], wants: &str| {
        let (status, answer) = signed.check(&proof.to_string(), more);
        assert_eq!((status, &answer["proven"]), (1, &json!(false)), "{answer}");
        assert!(answer["reason"].as_str().unwrap().contains(wants), "{answer}");
    };
    let mut other = parsed(&proof);
    other["path"][1] = json!("00".repeat(32));
    not_proven(other, &[], "does not lead to the root");
    let mut other = parsed(&proof);
    other["path"].as_array_mut().unwrap().pop();
    not_proven(other, &[], "does not lead to the root");
    let mut other = parsed(&proof);
    other["changes"] = json!(5);
    not_proven(other, &[], "make the proof for this head");
    not_proven(parsed(&proof), &["--key", &"ab".repeat(32)], "is signed with the key");
    // Every field of the head is signed.
    let head = signed.head.clone();
    for (name, value) in head.as_object().unwrap() {
        let mut altered = head.clone();
        altered[name] = match value {
            Value::Number(number) => json!(number.as_u64().unwrap() + 1),
            Value::String(text) => json!(text.replace(['0', '1'], "2")),
            other => panic!("{other}"),
        };
        signed.files.write("head.json", &altered.to_string());
        let (status, answer) = signed.check(&proof, &[]);
        assert_eq!((status, &answer["proven"]), (1, &json!(false)), "{name}: {answer}");
    }
    signed.files.write("head.json", &head.to_string());
    assert_eq!(signed.check(&proof, &[]).0, 0);
    assert_eq!(signed.prove("0-0-7").0, 2);
    assert_eq!(signed.prove("x").0, 2);
    assert_eq!(signed.check("{}", &[]).0, 2);
}

#[test]
fn a_log_that_is_not_what_was_published_is_not_signed_and_proves_nothing() {
    let signed = Signed::new();
    let changes = signed.files.lines("changes");
    let removed = [&changes[..4], &changes[5..]].concat();
    signed.files.write("changes", &(removed.join("\n") + "\n"));
    let (status, text) = run(&[
        "audit",
        "heads",
        "--sign",
        &signed.files.path("key.pem"),
        "--events",
        &signed.files.path("events"),
        "--changes",
        &signed.files.path("changes"),
    ]);
    assert_eq!((status, text.as_str()), (2, ""));
    let mut altered = changes.clone();
    altered[4] = altered[4].replace("\"at\":", "\"at\":1");
    signed.files.write("changes", &(altered.join("\n") + "\n"));
    // A proof of another change needs the altered one beside it.
    assert_eq!(
        signed.prove(parsed(&changes[3])["id"].as_str().unwrap()),
        (1, String::new())
    );
}
