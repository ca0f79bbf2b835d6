//! `rexray token`: JSON Web Tokens (RFC 7519) signed with a shared key. Dunnage asks nobody for one; scripts that make or read
//! tokens find the same here.

use std::io::{BufRead, IsTerminal};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use dunnage_model::{Error, Result};
use jiff::Timestamp;
use ring::hmac;
use serde::{Deserialize, Serialize};

use super::args::TokenCommand;
use super::print::{Answer, Format, Shape};

const ALGORITHMS: [(&str, hmac::Algorithm); 3] = [("HS256", hmac::HMAC_SHA256), ("HS384", hmac::HMAC_SHA384), ("HS512", hmac::HMAC_SHA512)];

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    typ: String,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Claims {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exp: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    iat: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nbf: Option<i64>,
    #[serde(default)]
    sub: String,
}

/// `rexray token …`
pub fn token(command: TokenCommand) -> Result<String> {
    let now = Timestamp::now().as_second();
    match command {
        TokenCommand::New { subjects, key, alg, exp } => {
            let (algorithm, name) = algorithm(&alg)?;
            let (key, lasts) = (signing_key(&key, algorithm)?, duration(&exp)?);
            let exp = now.saturating_add(i64::try_from(lasts.as_secs()).unwrap_or(i64::MAX));
            let token = |sub: &String| sign(&key, name, &Claims { exp: Some(exp), iat: Some(now), nbf: Some(now), sub: sub.clone() });
            subjects.iter().map(|subject| Ok(token(subject)? + "\n")).collect()
        }
        TokenCommand::Decode { tokens, key, verify } => {
            let tokens = if tokens.is_empty() { from_stdin()? } else { tokens };
            let rows: Result<Vec<_>> = tokens.iter().map(|token| Ok(row(&decode(token, verify.then_some(key.as_str()), now)?))).collect();
            Answer::tokens(rows?).print(&Format { shape: Shape::Table, tabs: true, quiet: false })
        }
    }
}

fn from_stdin() -> Result<Vec<String>> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Err(Error::invalid("TOKEN", "there is no token", "give it, or write it to stdin"));
    }
    let lines: std::io::Result<Vec<String>> = stdin.lock().lines().collect();
    let lines = lines.map_err(|e| Error::os("cannot read stdin", &e))?;
    Ok(lines.into_iter().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect())
}

fn algorithm(name: &str) -> Result<(hmac::Algorithm, &'static str)> {
    let known = ALGORITHMS.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
    let (name, algorithm) = known.ok_or_else(|| {
        let detail = match name.get(..2).map(str::to_ascii_uppercase).as_deref() {
            Some("RS" | "ES" | "PS") => format!("{name} signs with a private key, and only shared keys are supported"),
            _ => format!("{name:?} is no algorithm"),
        };
        Error::invalid("alg", detail, "use HS256, HS384 or HS512")
    })?;
    Ok((algorithm, name))
}

/// The key itself, or what is in the file of that name.
fn signing_key(key: &str, algorithm: hmac::Algorithm) -> Result<hmac::Key> {
    if key.is_empty() {
        return Err(Error::invalid("key", "there is no key", "give it with --key or REXRAY_TOKEN_KEY, or the file that it is in"));
    }
    let bytes = if std::path::Path::new(key).is_file() {
        std::fs::read(key).map_err(|e| Error::os("cannot read the file of the key", &e))?
    } else {
        key.as_bytes().to_vec()
    };
    Ok(hmac::Key::new(algorithm, &bytes))
}

fn sign(key: &hmac::Key, alg: &str, claims: &Claims) -> Result<String> {
    let part = |json: serde_json::Result<String>| {
        json.map(|json| BASE64.encode(json)).map_err(|e| Error::internal(format!("cannot write a token: {e}")))
    };
    let header = Header { alg: alg.to_owned(), typ: "JWT".to_owned() };
    let signed = format!("{}.{}", part(serde_json::to_string(&header))?, part(serde_json::to_string(claims))?);
    let signature = BASE64.encode(hmac::sign(key, signed.as_bytes()));
    Ok(format!("{signed}.{signature}"))
}

/// What is in a token; with a key, only if it was signed with it and its time is now.
fn decode(token: &str, key: Option<&str>, now: i64) -> Result<Claims> {
    let bad = |why: &str| Error::invalid("TOKEN", format!("this is no token: {why}"), "give the three parts as they were printed");
    let (signed, signature) = token.rsplit_once('.').ok_or_else(|| bad("it has no dots"))?;
    let (header, claims) = signed.split_once('.').ok_or_else(|| bad("it has not three parts"))?;
    let bytes = |part: &str| BASE64.decode(part.trim_end_matches('=')).map_err(|e| bad(&e.to_string()));
    let header: Header = serde_json::from_slice(&bytes(header)?).map_err(|e| bad(&e.to_string()))?;
    let claims: Claims = serde_json::from_slice(&bytes(claims)?).map_err(|e| bad(&e.to_string()))?;
    if let Some(key) = key {
        let refused = |why: &str| Error::invalid("TOKEN", format!("the token of {:?} {why}", claims.sub), "do not trust it");
        let key = signing_key(key, algorithm(&header.alg)?.0)?;
        hmac::verify(&key, signed.as_bytes(), &bytes(signature)?).map_err(|_| refused("was not signed with this key"))?;
        if claims.exp.is_some_and(|exp| exp <= now) {
            return Err(refused("has expired"));
        }
        if claims.nbf.is_some_and(|nbf| nbf > now) {
            return Err(refused("is not valid yet"));
        }
    }
    Ok(claims)
}

fn row(claims: &Claims) -> Vec<String> {
    // A claim that is missing is Go's zero time.
    let time = |second: Option<i64>| match second.map(Timestamp::from_second) {
        Some(Ok(time)) => time.strftime("%Y-%m-%d %H:%M:%S +0000 UTC").to_string(),
        _ => "0001-01-01 00:00:00 +0000 UTC".to_owned(),
    };
    vec![claims.sub.clone(), time(claims.iat), time(claims.nbf), time(claims.exp)]
}

/// A duration as Go writes it: `8760h`, `1h30m`, `1.5h`, `90s`.
fn duration(text: &str) -> Result<Duration> {
    let bad = || Error::invalid("exp", format!("{text:?} is no duration"), "write for example 8760h, 1h30m or 90s");
    let (mut rest, mut seconds) = (text.trim(), 0.0);
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or_else(bad)?;
        let (number, after) = rest.split_at(digits);
        let unit = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let second = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" | "μs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(bad()),
        };
        seconds += number.parse::<f64>().map_err(|_| bad())? * second;
        rest = after;
    }
    Duration::try_from_secs_f64(seconds).ok().filter(|lasts| lasts.as_secs() > 0).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> hmac::Key {
        signing_key(text, hmac::HMAC_SHA256).expect("key")
    }

    #[test]
    fn a_token_comes_back_as_it_was_made_whatever_the_algorithm() {
        for alg in ["HS256", "hs384", "HS512"] {
            let (algorithm, name) = algorithm(alg).expect("known");
            let claims = Claims { exp: Some(2_000), iat: Some(1_000), nbf: Some(1_000), sub: "akutz".into() };
            let token = sign(&signing_key("secret", algorithm).expect("key"), name, &claims).expect("token");
            assert_eq!(decode(&token, Some("secret"), 1_500).expect("verified"), claims);
            assert_eq!(decode(&token, None, 9_000).expect("only read"), claims);
            let error = |key, now| decode(&token, Some(key), now).expect_err("refused").to_string();
            assert!(error("other", 1_500).contains("not signed with this key"));
            assert!(error("secret", 2_000).contains("expired"));
            assert!(error("secret", 999).contains("not valid yet"));
        }
    }

    #[test]
    fn a_token_is_what_other_programs_make_of_the_same_words() {
        // The example of jwt.io, which many libraries have among their tests.
        let known = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIiwiaWF0IjoxNTE2MjM5MDIyfQ.\
                     SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c";
        let claims = decode(known, Some("your-256-bit-secret"), 1_516_239_023).expect("verified");
        assert_eq!((claims.sub.as_str(), claims.iat), ("1234567890", Some(1_516_239_022)));
        assert_eq!(row(&claims)[1], "2018-01-18 01:30:22 +0000 UTC");
        let ours = sign(&key("k"), "HS256", &Claims { exp: None, iat: Some(1), nbf: None, sub: "a".into() }).expect("token");
        assert!(ours.starts_with("eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpYXQiOjEsInN1YiI6ImEifQ."), "{ours}");
    }

    #[test]
    fn an_unsigned_token_and_one_of_a_private_key_are_refused_by_name() {
        let token = |alg: &str| format!("{}.{}.", BASE64.encode(format!(r#"{{"alg":"{alg}"}}"#)), BASE64.encode("{}"));
        for alg in ["none", "RS256", "ES384", "PS512"] {
            let error = decode(&token(alg), Some("k"), 0).expect_err(alg).to_string();
            assert!(error.contains(alg) && error.contains("HS256"), "{error}");
        }
        assert!(decode("a.b", None, 0).is_err() && decode("nonsense", None, 0).is_err());
    }

    #[test]
    fn a_key_may_be_a_file_and_must_be_something() {
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), "secret").expect("written");
        let token = sign(&key(&file.path().display().to_string()), "HS256", &Claims { exp: None, iat: None, nbf: None, sub: "a".into() });
        assert!(decode(&token.expect("token"), Some("secret"), 0).is_ok());
        assert!(signing_key("", hmac::HMAC_SHA256).expect_err("empty").to_string().contains("REXRAY_TOKEN_KEY"));
    }

    #[test]
    fn durations_are_go_s() {
        for (text, seconds) in [("8760h", 31_536_000), ("1h30m", 5_400), ("1.5h", 5_400), ("90s", 90), ("1500ms", 1), ("1m0.5s", 60)] {
            assert_eq!(duration(text).map(|d| d.as_secs()), Ok(seconds), "{text}");
        }
        for text in ["", "8760", "h", "-1h", "1d", "0s", "1h30", "1..5h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
