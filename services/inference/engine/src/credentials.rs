//! Who calls: ES256 tokens (RFC 7515, 7518, 7519) against the JWKS file of the mesh.
//!
//! Only a valid credential is found here; every refusal is Python's to tell.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine;
use ring::signature::{UnparsedPublicKey, ECDSA_P256_SHA256_FIXED};
use serde_json::Value;

const KEY_ISSUER: &str = "volary";
const SERVICE_ISSUER: &str = "volary-services";
const SERVICE_ROLE: &str = "service";
const DEFAULT_PROJECT: &str = "default";
const ALGORITHM: &str = "ES256";
const LEEWAY_S: i64 = 5; // clocks of two machines
const MAX_TOKEN_BYTES: usize = 8_192;
const MAX_CACHED: usize = 4_096;
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Who a verified token speaks for.
#[derive(Debug, PartialEq, Eq)]
pub struct Principal {
    pub project: String,
    key_id: String,
    pub roles: Vec<String>,
}

impl Principal {
    pub fn has_one_of(&self, allowed: &[String]) -> bool {
        self.roles.iter().any(|role| allowed.contains(role))
    }
}

struct Key {
    issuer: String,
    public: Vec<u8>,
}

/// What changes with a file: its time, its place and its size.
type Seen = (i64, i64, u64, u64);

/// Verifies tokens; remembers those that it verified until they expire or the keys change.
pub struct Verifier {
    path: Option<PathBuf>,
    seen: Option<Seen>,
    next_look: Option<Instant>,
    keys: HashMap<String, Key>,
    revocations: Option<PathBuf>,
    seen_revoked: Option<Seen>,
    revoked: HashSet<String>,
    cache: HashMap<Box<str>, (i64, Arc<Principal>)>,
}

impl Verifier {
    /// Without a file no credential is valid.
    pub fn new(path: Option<PathBuf>, revocations: Option<PathBuf>) -> Self {
        Verifier {
            path,
            seen: None,
            next_look: None,
            keys: HashMap::new(),
            revocations,
            seen_revoked: None,
            revoked: HashSet::new(),
            cache: HashMap::new(),
        }
    }

    /// The principal of a valid token, None for any other.
    pub fn verify(&mut self, token: &str, now: Instant, now_s: i64) -> Option<Arc<Principal>> {
        if token.len() > MAX_TOKEN_BYTES {
            return None;
        }
        self.refresh(now);
        self.verified(token, now_s)
            .filter(|principal| !self.revoked.contains(&principal.key_id))
    }

    fn verified(&mut self, token: &str, now_s: i64) -> Option<Arc<Principal>> {
        if let Some((expires_s, principal)) = self.cache.get(token) {
            if *expires_s > now_s {
                return Some(principal.clone());
            }
        }
        let (expires_s, principal) = self.checked(token, now_s)?;
        let principal = Arc::new(principal);
        if self.cache.len() >= MAX_CACHED {
            self.cache.clear(); // of an hour's tokens: to verify them again costs 50 us each
        }
        self.cache
            .insert(token.into(), (expires_s, principal.clone()));
        Some(principal)
    }

    /// Read the file again if it changed; a broken or missing one keeps the last good keys.
    fn refresh(&mut self, now: Instant) {
        if self.next_look.is_some_and(|next| now < next) {
            return;
        }
        self.next_look = Some(now + LOOK_AGAIN);
        if let Some(keys) = changed(&self.path, &mut self.seen, keys_of) {
            self.keys = keys;
            self.cache.clear();
        }
        if let Some(revoked) = changed(&self.revocations, &mut self.seen_revoked, revoked_of) {
            self.revoked = revoked;
        }
    }

    fn checked(&self, token: &str, now_s: i64) -> Option<(i64, Principal)> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let header = json_of(header)?;
        if header.get("alg")?.as_str()? != ALGORITHM || header.get("crit").is_some() {
            return None;
        }
        let kid = header.get("kid")?.as_str()?;
        let key = self.keys.get(kid)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &key.public)
            .verify(signed.as_bytes(), &signature)
            .ok()?;
        let claims = json_of(claims)?;
        if claims.get("iss")?.as_str()? != key.issuer {
            return None;
        }
        let expires_s = claims.get("exp")?.as_i64()?;
        let issued_s = claims.get("iat")?.as_i64()?;
        if expires_s + LEEWAY_S <= now_s || issued_s - LEEWAY_S > now_s {
            return None;
        }
        Some((expires_s, principal_of(&claims, kid, &key.issuer)?))
    }
}

fn principal_of(claims: &Value, kid: &str, issuer: &str) -> Option<Principal> {
    let subject = claims.get("sub")?.as_str()?;
    let roles: Vec<String> = match claims.get("roles") {
        None => Vec::new(),
        Some(roles) => roles
            .as_array()?
            .iter()
            .map(|role| role.as_str().map(str::to_owned))
            .collect::<Option<_>>()?,
    };
    let belongs = match issuer {
        SERVICE_ISSUER => subject.strip_prefix("services/") == Some(kid) && roles == [SERVICE_ROLE],
        KEY_ISSUER => {
            subject.starts_with("principals/") && !roles.iter().any(|role| role == SERVICE_ROLE)
        }
        _ => false,
    };
    let project = match claims.get("prj") {
        None | Some(Value::Null) => DEFAULT_PROJECT,
        Some(project) => match project.as_str()? {
            "" => DEFAULT_PROJECT,
            named => named,
        },
    };
    belongs.then(|| Principal {
        project: project.to_owned(),
        key_id: claims
            .get("jti")
            .and_then(Value::as_str)
            .unwrap_or("")
            .to_owned(),
        roles,
    })
}

/// What a file holds, when it changed since it was seen and is whole.
fn changed<T>(
    path: &Option<PathBuf>,
    seen: &mut Option<Seen>,
    read: impl Fn(&str) -> Option<T>,
) -> Option<T> {
    let path = path.as_ref()?;
    let about = fs::metadata(path).ok()?;
    let now = (about.mtime(), about.mtime_nsec(), about.ino(), about.size());
    if *seen == Some(now) {
        return None;
    }
    let found = read(&fs::read_to_string(path).ok()?)?;
    *seen = Some(now);
    Some(found)
}

fn revoked_of(text: &str) -> Option<HashSet<String>> {
    let document: Value = serde_json::from_str(text).ok()?;
    let ids = document.get("revoked")?.as_array()?.iter();
    ids.map(|id| id.as_str().map(str::to_owned)).collect()
}

fn json_of(part: &str) -> Option<Value> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

fn keys_of(text: &str) -> Option<HashMap<String, Key>> {
    let document: Value = serde_json::from_str(text).ok()?;
    let keys = document.get("keys")?.as_array()?;
    keys.iter()
        .map(|jwk| Some((jwk.get("kid")?.as_str()?.to_owned(), key_of(jwk)?)))
        .collect()
}

fn key_of(jwk: &Value) -> Option<Key> {
    if jwk.get("kty")?.as_str()? != "EC" || jwk.get("crv")?.as_str()? != "P-256" {
        return None;
    }
    let mut public = vec![4u8]; // an uncompressed point
    for coordinate in ["x", "y"] {
        let bytes = URL_SAFE_NO_PAD
            .decode(jwk.get(coordinate)?.as_str()?)
            .ok()?;
        if bytes.len() != 32 {
            return None;
        }
        public.extend(bytes);
    }
    let issuer = jwk.get("iss").and_then(Value::as_str);
    Some(Key {
        issuer: issuer.unwrap_or(SERVICE_ISSUER).to_owned(),
        public,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::rand::SystemRandom;
    use ring::signature::{EcdsaKeyPair, KeyPair, ECDSA_P256_SHA256_FIXED_SIGNING};
    use serde_json::json;
    use std::sync::atomic::{AtomicU32, Ordering};

    static FILES: AtomicU32 = AtomicU32::new(0);

    struct Signer {
        pair: EcdsaKeyPair,
        kid: &'static str,
    }

    impl Signer {
        fn new(kid: &'static str) -> Self {
            let random = SystemRandom::new();
            let document =
                EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
            let pair = EcdsaKeyPair::from_pkcs8(
                &ECDSA_P256_SHA256_FIXED_SIGNING,
                document.as_ref(),
                &random,
            )
            .unwrap();
            Signer { pair, kid }
        }

        fn jwk(&self, issuer: &str) -> Value {
            let point = self.pair.public_key().as_ref();
            json!({"kty": "EC", "crv": "P-256", "kid": self.kid, "iss": issuer,
                "x": URL_SAFE_NO_PAD.encode(&point[1..33]), "y": URL_SAFE_NO_PAD.encode(&point[33..])})
        }

        fn token(&self, claims: &Value) -> String {
            self.token_by(&json!({"alg": "ES256", "kid": self.kid}), claims)
        }

        fn token_by(&self, header: &Value, claims: &Value) -> String {
            let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
            let signed = format!("{}.{}", encode(header), encode(claims));
            let signature = self
                .pair
                .sign(&SystemRandom::new(), signed.as_bytes())
                .unwrap();
            format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
        }
    }

    fn verifier(jwks: &[Value]) -> Verifier {
        let number = FILES.fetch_add(1, Ordering::Relaxed);
        let name = format!("volary-jwks-{}-{number}.json", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::write(&path, json!({ "keys": jwks }).to_string()).unwrap();
        Verifier::new(Some(path), None)
    }

    fn claims() -> Value {
        json!({"iss": "volary", "sub": "principals/ann", "prj": "birds", "roles": ["predictor"],
            "iat": 1_000, "exp": 2_000})
    }

    #[test]
    fn a_valid_key_speaks_for_its_project() {
        let signer = Signer::new("issuing");
        let mut verifier = verifier(&[signer.jwk("volary")]);
        let token = signer.token(&claims());
        let now = Instant::now();
        let principal = verifier.verify(&token, now, 1_500).unwrap();
        assert_eq!(principal.project, "birds");
        assert!(principal.has_one_of(&["viewer".into(), "predictor".into()]));
        assert!(!principal.has_one_of(&["admin".into()]));
        assert!(
            verifier.verify(&token, now, 2_010).is_none(),
            "the cache forgets what expired"
        );
    }

    #[test]
    fn what_does_not_fit_its_key_is_refused() {
        let signer = Signer::new("issuing");
        let other = Signer::new("issuing");
        let mut verifier = verifier(&[signer.jwk("volary")]);
        let with = |key: &str, value: Value| {
            let mut changed = claims();
            changed[key] = value;
            changed
        };
        let good = signer.token(&claims());
        let (signed, _) = good.rsplit_once('.').unwrap();
        let refused = [
            other.token(&claims()),
            signer.token(&with("iss", json!("volary-services"))),
            signer.token(&with("sub", json!("services/issuing"))),
            signer.token(&with("roles", json!(["service"]))),
            signer.token(&with("roles", json!("predictor"))),
            signer.token(&with("exp", json!(1_400))),
            signer.token(&with("iat", json!(1_600))),
            signer.token_by(&json!({"alg": "none", "kid": "issuing"}), &claims()),
            signer.token_by(&json!({"alg": "ES256", "kid": "none"}), &claims()),
            signer.token_by(
                &json!({"alg": "ES256", "kid": "issuing", "crit": ["x"]}),
                &claims(),
            ),
            format!("{signed}."),
            "a.b.c".into(),
            String::new(),
            "x".repeat(10_000),
        ];
        for token in refused {
            assert!(
                verifier.verify(&token, Instant::now(), 1_500).is_none(),
                "{token}"
            );
        }
        assert!(verifier.verify(&good, Instant::now(), 1_500).is_some());
    }

    #[test]
    fn a_revoked_key_is_refused_from_the_next_look_on() {
        let signer = Signer::new("issuing");
        let mut verifier = verifier(&[signer.jwk("volary")]);
        let name = format!("volary-revoked-{}.json", std::process::id());
        let path = std::env::temp_dir().join(name);
        verifier.revocations = Some(path.clone());
        let mut claims = claims();
        claims["jti"] = json!("key-1");
        let (token, now) = (signer.token(&claims), Instant::now());
        assert!(verifier.verify(&token, now, 1_500).is_some());
        fs::write(&path, json!({"revoked": ["key-1"]}).to_string()).unwrap();
        assert!(verifier.verify(&token, now, 1_500).is_some());
        assert!(verifier.verify(&token, now + LOOK_AGAIN, 1_500).is_none());
    }

    #[test]
    fn a_service_speaks_only_for_itself() {
        let signer = Signer::new("monitor");
        let mut verifier = verifier(&[signer.jwk("volary-services")]);
        let mut claims = json!({"iss": "volary-services", "sub": "services/monitor",
            "roles": ["service"], "iat": 1_000, "exp": 2_000});
        let token = signer.token(&claims);
        let principal = verifier.verify(&token, Instant::now(), 1_500).unwrap();
        assert_eq!(principal.project, "default");
        claims["sub"] = json!("services/gateway");
        let token = signer.token(&claims);
        assert!(verifier.verify(&token, Instant::now(), 1_500).is_none());
    }
}
