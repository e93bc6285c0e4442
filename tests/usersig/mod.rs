//! A UserSig of version 2, as the libraries for Tencent Cloud IM sign it, for tests that only need one.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::ZlibEncoder;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::json;
use sha2::Sha256;
use std::io::Write as _;

/// The query string of a request that an identifier has signed at a time, in seconds since 1970, for an hour.
pub fn signed_query(app: u64, key: &str, identifier: &str, time: u64) -> String {
    const EXPIRE: u64 = 3_600;
    let text = format!("TLS.identifier:{identifier}\nTLS.sdkappid:{app}\nTLS.time:{time}\nTLS.expire:{EXPIRE}\n");
    let mut hmac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("any length");
    hmac.update(text.as_bytes());
    let fields = json!({"TLS.ver": "2.0", "TLS.identifier": identifier, "TLS.sdkappid": app, "TLS.time": time,
        "TLS.expire": EXPIRE, "TLS.sig": STANDARD.encode(hmac.finalize().into_bytes())});
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
    zlib.write_all(fields.to_string().as_bytes()).expect("in memory");
    let base64 = STANDARD.encode(zlib.finish().expect("in memory"));
    let usersig = base64.replace('+', "*").replace('/', "-").replace('=', "_");
    format!("sdkappid={app}&identifier={identifier}&usersig={usersig}")
}
