//! What proves that a message is the server's own: the header that webhooks carry, and the addresses of pictures
//! that open without a key. Both are HMAC-SHA256; their messages cannot be taken for each other, as one begins with
//! digits and the other with a slash.

use hmac::Mac;
use jiff::Timestamp;

use super::Secret;

/// Header with the time and the code: `t=<unix seconds>,v1=<hex>`.
pub const SIGNATURE_HEADER: &str = "Darkroom-Signature";
/// Header with the delivery's id, the same at each attempt.
pub const DELIVERY_HEADER: &str = "Darkroom-Delivery";
/// Header that says what happened: `task.completed`.
pub const EVENT_HEADER: &str = "Darkroom-Event";

/// The value of [`SIGNATURE_HEADER`] for `body`, sent at `now`: the code is over `"{unix seconds}.{body}"`.
pub fn sign_webhook(secret: &Secret, now: Timestamp, body: &[u8]) -> String {
    let seconds = now.as_second();
    let code = secret.keyed().chain_update(format!("{seconds}.")).chain_update(body).finalize();
    format!("t={seconds},v1={}", hex::encode(code.into_bytes()))
}

/// Why a signed address does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The signature is not this server's for this path and time.
    #[error("the signature does not belong to this address")]
    Mismatch,
    /// It was good until now.
    #[error("this address has expired; ask for a new one")]
    Expired,
}

/// The signature of `path` (`/v1/images/{id}`, as clients send it, without a query) until `expires`, unix seconds.
/// Hexadecimal. The code is over `"{path}\n{expires}"`.
pub fn sign_path(secret: &Secret, path: &str, expires: i64) -> String {
    hex::encode(path_code(secret, path, expires).finalize().into_bytes())
}

/// `path` with what makes it open until `expires`, unix seconds: `{path}?expires=…&signature=…`.
pub fn signed_path(secret: &Secret, path: &str, expires: i64) -> String {
    format!("{path}?expires={expires}&signature={}", sign_path(secret, path, expires))
}

/// Whether `signature` opens `path` until `expires`, and `expires` is after `now`. Compares in constant time.
pub fn verify_path(
    secret: &Secret,
    path: &str,
    expires: i64,
    signature: &str,
    now: Timestamp,
) -> Result<(), LinkError> {
    let mut code = [0; 32];
    hex::decode_to_slice(signature, &mut code).map_err(|_| LinkError::Mismatch)?;
    path_code(secret, path, expires).verify_slice(&code).map_err(|_| LinkError::Mismatch)?;
    if expires <= now.as_second() { Err(LinkError::Expired) } else { Ok(()) }
}

fn path_code(secret: &Secret, path: &str, expires: i64) -> impl Mac {
    secret.keyed().chain_update(path).chain_update(format!("\n{expires}"))
}

#[cfg(test)]
pub(super) mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    const KEY: &str = "0123456789abcdef0123456789abcdef";
    const PATH: &str = "/v1/images/00112233445566778899aabbccddeeff";
    const UNTIL: i64 = 1_700_000_000;

    fn secret() -> Secret {
        Secret::new(KEY, "the test").unwrap()
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    /// HMAC-SHA256 by its definition (RFC 2104), for keys of at most 64 bytes.
    pub(in crate::outbound) fn hmac_by_definition(key: &[u8], message: &[u8]) -> String {
        let padded = |byte: u8| {
            let mut block = [byte; 64];
            block.iter_mut().zip(key).for_each(|(b, k)| *b ^= k);
            block
        };
        let inner = Sha256::new().chain_update(padded(0x36)).chain_update(message).finalize();
        hex::encode(Sha256::new().chain_update(padded(0x5c)).chain_update(inner).finalize())
    }

    #[test]
    fn a_webhooks_signature_is_what_python_computes() {
        // hmac.new(KEY, b'1700000000.{"task_id":…}', hashlib.sha256).hexdigest()
        let body = br#"{"task_id":"img_1","status":"completed"}"#;
        let header = sign_webhook(&secret(), at(UNTIL), body);
        let code = "534d530e46a49f8af4472d17ec5a9002ae0a200cb8fb96aa219d81f17f637010";
        assert_eq!(header, format!("t=1700000000,v1={code}"));
        let message = [b"1700000000.".as_slice(), body].concat();
        assert_eq!(hmac_by_definition(KEY.as_bytes(), &message), code);
    }

    #[test]
    fn a_signed_path_is_what_python_computes() {
        let code = "8e3778b84842d7fc7fa9062a249ac321d915b40aa2584202e467c680b4f60f21";
        assert_eq!(sign_path(&secret(), PATH, UNTIL), code);
        let address = signed_path(&secret(), PATH, UNTIL);
        assert_eq!(address, format!("{PATH}?expires={UNTIL}&signature={code}"));
    }

    #[test]
    fn a_signed_path_opens_until_it_expires() {
        let signature = sign_path(&secret(), PATH, UNTIL);
        let verify = |now| verify_path(&secret(), PATH, UNTIL, &signature, at(now));
        assert_eq!(verify(UNTIL - 1), Ok(()));
        assert_eq!(verify(UNTIL), Err(LinkError::Expired));
    }

    #[test]
    fn a_signature_opens_nothing_else() {
        let signature = sign_path(&secret(), PATH, UNTIL);
        let other = PATH.replace("ff", "fe");
        let stranger = Secret::new("another secret, not the first", "the test").unwrap();
        let now = at(0);
        let mismatch = Err(LinkError::Mismatch);
        assert_eq!(verify_path(&secret(), &other, UNTIL, &signature, now), mismatch);
        assert_eq!(verify_path(&secret(), PATH, UNTIL + 1, &signature, now), mismatch);
        assert_eq!(verify_path(&stranger, PATH, UNTIL, &signature, now), mismatch);
        for forged in
            ["", "00", &signature[..62], &format!("{signature}00"), &"z".repeat(64), &"0".repeat(64)]
        {
            assert_eq!(verify_path(&secret(), PATH, UNTIL, forged, now), mismatch, "{forged}");
        }
    }
}
