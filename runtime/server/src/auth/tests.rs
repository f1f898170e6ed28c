use super::*;
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{EncodingKey, Header, encode};
use rsa::pkcs1::EncodeRsaPrivateKey;
use serde_json::{Value, json};
use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const TOKEN: &str = "importer-token-0123456789";

fn config(text: &str) -> AuthConfig {
    toml::from_str(text).unwrap()
}

fn authenticator(text: &str) -> Authenticator {
    Authenticator::new(config(text)).unwrap()
}

fn refused(text: &str) -> String {
    Authenticator::new(config(text)).unwrap_err().to_string()
}

fn static_token() -> String {
    format!("[[tokens]]\nactor = \"importer\"\ntoken = \"{TOKEN}\"\n")
}

fn with(authorization: &str) -> HeaderMap {
    HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::try_from(authorization).unwrap())])
}

fn bearer_of(token: &str) -> HeaderMap {
    with(&format!("Bearer {token}"))
}

#[test]
fn without_any_token_configured_everyone_is_anonymous() {
    let open = authenticator("");
    assert_eq!(open.authenticate(&HeaderMap::new()), Ok(ANONYMOUS));
    assert_eq!(open.authenticate(&bearer_of("whatever")), Ok(ANONYMOUS));
    assert!(!open.is_configured() && !Authenticator::open_to_all().is_configured());
}

#[test]
fn a_known_token_gives_its_actor() {
    let auth = authenticator(&static_token());
    assert_eq!(auth.authenticate(&bearer_of(TOKEN)), Ok(Text::from("importer")));
    assert_eq!(auth.authenticate(&with(&format!("bearer  {TOKEN}"))), Ok(Text::from("importer")));
    assert_eq!(auth.authenticate(&bearer_of("importer-token-0123456780")), Err(AuthError::Unknown));
}

#[test]
fn a_token_may_be_configured_by_its_hash_alone() {
    let digest = Digest::of(TOKEN.as_bytes());
    let auth = authenticator(&format!("[[tokens]]\nactor = \"importer\"\nsha256 = \"{digest}\"\n"));
    assert_eq!(auth.authenticate(&bearer_of(TOKEN)), Ok(Text::from("importer")));
    assert_eq!(auth.authenticate(&bearer_of(&digest.to_string())), Err(AuthError::Unknown));
}

#[test]
fn a_missing_token_is_anonymous_only_if_the_settings_say_so_and_a_bad_one_never_is() {
    let closed = authenticator(&static_token());
    assert_eq!(closed.authenticate(&HeaderMap::new()), Err(AuthError::Missing));
    let half_open = authenticator(&format!("anonymous = true\n{}", static_token()));
    assert_eq!(half_open.authenticate(&HeaderMap::new()), Ok(ANONYMOUS));
    assert_eq!(half_open.authenticate(&bearer_of("not-a-token-of-ours")), Err(AuthError::Unknown));
}

#[test]
fn a_header_that_is_not_one_bearer_token_is_malformed() {
    let auth = authenticator(&format!("anonymous = true\n{}", static_token()));
    for wrong in ["Basic dXNlcjpwYXNz", "Bearer", "Bearer ", "Bearer a b", "Bearer a\"b", TOKEN] {
        assert!(matches!(auth.authenticate(&with(wrong)), Err(AuthError::Malformed(_))), "{wrong}");
    }
    let long = format!("Bearer {}", "a".repeat(MAX_TOKEN_BYTES + 1));
    assert!(matches!(auth.authenticate(&with(&long)), Err(AuthError::Malformed(_))));
    let mut twice = bearer_of(TOKEN);
    twice.append(AUTHORIZATION, HeaderValue::from_static("Bearer x"));
    assert!(matches!(auth.authenticate(&twice), Err(AuthError::Malformed(_))));
}

#[test]
fn settings_that_would_not_be_safe_are_refused() {
    let token = |rest: &str| refused(&format!("[[tokens]]\nactor = \"a\"\n{rest}\n"));
    assert!(token("token = \"short\"").contains("could be guessed"));
    assert!(token("token = \"with spaces in between it\"").contains("letters, digits"));
    assert!(token("").contains("neither"));
    assert!(token("sha256 = \"12\"").contains("64 hexadecimal digits"));
    assert!(refused(&format!("{}{}", static_token(), static_token())).contains("twice"));
    assert!(toml::from_str::<AuthConfig>("tokns = []").is_err(), "unknown keys are errors");
    let jwt = |rest: &str| refused(&format!("[jwt]\nissuer = \"i\"\naudience = [\"a\"]\n{rest}\n"));
    assert!(jwt("").contains("write one of `jwks-file` and `jwks-url`"));
    assert!(jwt("jwks-url = \"http://idp.example.org/keys\"").contains("not an https URL"));
    assert!(jwt("jwks-url = \"https://me:pw@idp.example.org/keys\"").contains("password"));
    assert!(jwt("jwks-file = \"/nowhere/keys.json\"").contains("/nowhere/keys.json"));
    assert!(jwt("jwks-file = \"k\"\nrefresh = \"1s\"").contains("refresh"));
    assert!(refused("[jwt]\nissuer = \"i\"\naudience = []\njwks-file = \"k\"").contains("audience"));
}

#[test]
fn secrets_are_never_shown() {
    let config = config(&static_token());
    assert!(!format!("{config:?}").contains(TOKEN));
    assert!(!format!("{:?}", Authenticator::new(config).unwrap()).contains(TOKEN));
    let error =
        authenticator(&static_token()).authenticate(&bearer_of("secret-that-is-not-known")).unwrap_err();
    assert!(!format!("{error} {error:?} {:?}", error.www_authenticate()).contains("secret-that"));
}

#[test]
fn every_401_says_how_to_authenticate_and_a_403_does_not() {
    let missing = AuthError::Missing.www_authenticate().unwrap();
    assert_eq!(missing, "Bearer realm=\"ebbtide\"");
    let expired = AuthError::Expired.www_authenticate().unwrap();
    assert_eq!(
        expired,
        "Bearer realm=\"ebbtide\", error=\"invalid_token\", error_description=\"the token has expired\""
    );
    let odd = AuthError::BadJwt("\"quoted\" \\ and ü\n".to_owned()).www_authenticate().unwrap();
    assert!(
        odd.to_str().unwrap().ends_with("error_description=\"the token is not a usable JWT: quoted  and \"")
    );
    let forbidden = authorize(&Allow(Some(["alice".to_owned()].into())), &ANONYMOUS, || "model x".to_owned());
    let forbidden = forbidden.unwrap_err();
    assert_eq!((forbidden.status(), forbidden.www_authenticate()), (StatusCode::FORBIDDEN, None));
    assert_eq!(forbidden.to_string(), "anonymous may not use model x");
    assert_eq!(AuthError::KeysUnavailable.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[test]
fn allow_lists_name_actors_or_how_they_begin() {
    let allow = Allow(Some(["alice".to_owned(), "service:*".to_owned()].into()));
    let may = |actor: &str| authorize(&allow, &Text::from(actor), String::new).is_ok();
    assert!(may("alice") && may("service:billing") && !may("alice2") && !may("bob"));
    assert!(authorize(&Allow(None), &ANONYMOUS, String::new).is_ok());
}

/// An issuer with a key of each kind.
struct Issuer {
    rsa: EncodingKey,
    ec: EncodingKey,
    ed: EncodingKey,
    set: Value,
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand_core::RngCore::fill_bytes(&mut rand_core::OsRng, &mut bytes);
    bytes
}

/// PKCS#8 around a private key (RFC 5208): what stands in front does not depend on the key.
fn pkcs8(prefix: &str, key: &[u8]) -> Vec<u8> {
    let mut der = hex::decode(prefix).unwrap();
    der.extend_from_slice(key);
    der
}

impl Issuer {
    fn new(prefix: &str) -> Self {
        let rsa = rsa::RsaPrivateKey::new(&mut rand_core::OsRng, 2048).unwrap();
        let rsa = EncodingKey::from_rsa_der(rsa.to_pkcs1_der().unwrap().as_bytes());
        let ec_prefix = "3041020100301306072a8648ce3d020106082a8648ce3d030107042730250201010420";
        let mut scalar = random::<32>();
        scalar[0] = 1; // Below the order of the curve, and not zero.
        let ec = EncodingKey::from_ec_der(&pkcs8(ec_prefix, &scalar));
        let ed = EncodingKey::from_ed_der(&pkcs8("302e020100300506032b657004220420", &random::<32>()));
        let jwk = |key: &EncodingKey, algorithm| {
            let mut jwk = Jwk::from_encoding_key(key, algorithm).unwrap();
            jwk.common.key_id = Some(format!("{prefix}-{algorithm:?}"));
            jwk
        };
        use jsonwebtoken::Algorithm::{ES256, EdDSA, RS256};
        let keys = vec![jwk(&rsa, RS256), jwk(&ec, ES256), jwk(&ed, EdDSA)];
        let set = serde_json::to_value(JwkSet { keys }).unwrap();
        Self { rsa, ec, ed, set }
    }

    fn sign(&self, kid: Option<&str>, algorithm: jsonwebtoken::Algorithm, claims: &Value) -> String {
        let mut header = Header::new(algorithm);
        header.kid = kid.map(str::to_owned);
        let key = match algorithm {
            jsonwebtoken::Algorithm::RS256 => &self.rsa,
            jsonwebtoken::Algorithm::ES256 => &self.ec,
            _ => &self.ed,
        };
        encode(&header, claims, key).unwrap()
    }
}

static ISSUER: LazyLock<Issuer> = LazyLock::new(|| Issuer::new("ours"));
static STRANGER: LazyLock<Issuer> = LazyLock::new(|| Issuer::new("theirs"));

fn seconds_from_now(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    i64::try_from(now).unwrap() + seconds
}

/// Good claims, with some changed; null removes one.
fn claims(changes: &Value) -> Value {
    let mut claims = json!({
        "iss": "https://idp.example.org", "aud": "ebbtide", "sub": "alice", "exp": seconds_from_now(600),
        "email": "alice@example.org",
    });
    let object = claims.as_object_mut().unwrap();
    for (claim, value) in changes.as_object().unwrap() {
        object.insert(claim.clone(), value.clone());
    }
    object.retain(|_, value| !value.is_null());
    claims
}

fn jwt_config(keys: &str, rest: &str) -> String {
    format!(
        "[jwt]\n{keys}\nissuer = \"https://idp.example.org\"\naudience = [\"ebbtide\", \"other\"]\n{rest}\n"
    )
}

/// Checks tokens of `ISSUER`, whose keys are in a file.
fn jwt_authenticator(rest: &str) -> Authenticator {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), ISSUER.set.to_string()).unwrap();
    authenticator(&jwt_config(&format!("jwks-file = '{}'", file.path().display()), rest))
}

fn verdict(auth: &Authenticator, changes: &Value) -> Result<Text, AuthError> {
    auth.authenticate(&bearer_of(&ISSUER.sign(None, jsonwebtoken::Algorithm::ES256, &claims(changes))))
}

#[test]
fn a_jwt_of_each_kind_gives_its_subject() {
    let auth = jwt_authenticator("");
    for (kid, algorithm) in [
        ("ours-RS256", jsonwebtoken::Algorithm::RS256),
        ("ours-ES256", jsonwebtoken::Algorithm::ES256),
        ("ours-EdDSA", jsonwebtoken::Algorithm::EdDSA),
    ] {
        for kid in [Some(kid), None] {
            let token = ISSUER.sign(kid, algorithm, &claims(&json!({})));
            assert_eq!(auth.authenticate(&bearer_of(&token)), Ok(Text::from("alice")), "{algorithm:?}");
        }
    }
}

#[test]
fn another_claim_may_name_the_actor() {
    let auth = jwt_authenticator("actor-claim = \"email\"");
    assert_eq!(verdict(&auth, &json!({})), Ok(Text::from("alice@example.org")));
    assert!(matches!(verdict(&auth, &json!({"email": null})), Err(AuthError::BadJwt(_))));
    assert!(matches!(verdict(&auth, &json!({"email": ""})), Err(AuthError::BadJwt(_))));
    assert!(matches!(verdict(&auth, &json!({"email": "a\nb"})), Err(AuthError::BadJwt(_))));
}

#[test]
fn a_jwt_must_be_of_this_time_issuer_and_audience() {
    let auth = jwt_authenticator("leeway = \"5s\"");
    for (changes, expected) in [
        (json!({"exp": seconds_from_now(-60)}), AuthError::Expired),
        (json!({"nbf": seconds_from_now(60)}), AuthError::NotYetValid),
        (json!({"aud": "someone-else"}), AuthError::WrongAudience),
        (json!({"iss": "https://evil.example.org"}), AuthError::WrongIssuer),
        (json!({"exp": null}), AuthError::BadJwt("it has no `exp`".to_owned())),
        (json!({"aud": null}), AuthError::BadJwt("it has no `aud`".to_owned())),
        (json!({"iss": null}), AuthError::BadJwt("it has no `iss`".to_owned())),
    ] {
        assert_eq!(verdict(&auth, &changes), Err(expected));
    }
    assert_eq!(verdict(&auth, &json!({"aud": ["x", "other"]})), Ok(Text::from("alice")));
    let lenient = jwt_authenticator("leeway = \"2min\"");
    assert_eq!(verdict(&lenient, &json!({"exp": seconds_from_now(-60)})), Ok(Text::from("alice")));
}

#[test]
fn a_signature_by_any_other_key_is_refused() {
    use jsonwebtoken::Algorithm::{ES256, EdDSA};
    let auth = jwt_authenticator("");
    let verdict = |token: &str| auth.authenticate(&bearer_of(token)).unwrap_err();
    let good = claims(&json!({}));
    assert_eq!(verdict(&STRANGER.sign(Some("ours-ES256"), ES256, &good)), AuthError::BadSignature);
    assert_eq!(verdict(&STRANGER.sign(None, EdDSA, &good)), AuthError::BadSignature);
    assert_eq!(verdict(&STRANGER.sign(Some("theirs-ES256"), ES256, &good)), AuthError::UnknownKey);

    let token = ISSUER.sign(None, ES256, &good);
    let (head, signature) = token.rsplit_once('.').unwrap();
    let forged = ISSUER.sign(None, ES256, &claims(&json!({"sub": "root"})));
    let forged = forged.rsplit_once('.').unwrap().0;
    assert_eq!(verdict(&format!("{forged}.{signature}")), AuthError::BadSignature);
    assert!(matches!(verdict(&format!("{head}.")), AuthError::BadSignature | AuthError::BadJwt(_)));
}

#[test]
fn an_algorithm_that_is_not_allowed_is_refused_a_shared_secret_above_all() {
    let auth = jwt_authenticator("algorithms = [\"EdDSA\"]");
    assert_eq!(verdict(&auth, &json!({})), Err(AuthError::WrongAlgorithm));
    let all = jwt_authenticator("");
    // The classic: the public key as the secret of an HMAC.
    let public = ISSUER.set["keys"][0]["n"].as_str().unwrap();
    let secret = EncodingKey::from_secret(public.as_bytes());
    let token = encode(&Header::new(jsonwebtoken::Algorithm::HS256), &claims(&json!({})), &secret).unwrap();
    assert_eq!(all.authenticate(&bearer_of(&token)), Err(AuthError::WrongAlgorithm));
    // {"alg":"none"}
    let none = format!("eyJhbGciOiJub25lIn0.{}.", token.split('.').nth(1).unwrap());
    assert!(matches!(all.authenticate(&bearer_of(&none)), Err(AuthError::BadJwt(_))));
    assert!(matches!(all.authenticate(&bearer_of("a.b.c")), Err(AuthError::BadJwt(_))));
}

#[test]
fn static_tokens_and_jwts_work_side_by_side() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), ISSUER.set.to_string()).unwrap();
    let keys = format!("jwks-file = '{}'", file.path().display());
    let both = authenticator(&format!("{}{}", static_token(), jwt_config(&keys, "")));
    assert_eq!(both.authenticate(&bearer_of(TOKEN)), Ok(Text::from("importer")));
    assert_eq!(verdict(&both, &json!({})), Ok(Text::from("alice")));
}

#[test]
fn a_key_set_without_a_key_of_use_is_refused() {
    for wrong in
        [json!({"keys": []}), json!({"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}), json!([]), json!({})]
    {
        assert!(keys::KeySet::parse(wrong.to_string().as_bytes()).is_err(), "{wrong}");
    }
    let mut encryption_only = ISSUER.set.clone();
    for key in encryption_only["keys"].as_array_mut().unwrap() {
        key["use"] = "enc".into();
    }
    assert!(keys::KeySet::parse(encryption_only.to_string().as_bytes()).is_err());
    let many = json!({"keys": vec![ISSUER.set["keys"][1].clone(); 101]});
    assert!(keys::KeySet::parse(many.to_string().as_bytes()).err().unwrap().contains("101 keys"));
}

/// Answers each request with the next of these bodies, and then no more.
async fn publish(bodies: Vec<String>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    tokio::spawn(async move {
        for body in bodies {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            let head =
                format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
            // A client that has had enough hangs up.
            let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
        }
    });
    url
}

#[tokio::test]
async fn keys_at_a_url_are_fetched_beside_the_requests_and_kept_when_that_fails() {
    let too_large = " ".repeat(300 << 10);
    let url = publish(vec!["not json".to_owned(), ISSUER.set.to_string(), too_large]).await;
    let auth = authenticator(&jwt_config(&format!("jwks-url = \"{url}\""), ""));
    assert_eq!(verdict(&auth, &json!({})), Err(AuthError::KeysUnavailable));
    let jwt = auth.jwt.as_ref().unwrap();
    assert!(jwt.refetch().await.unwrap_err().contains("not a key set"));
    assert_eq!(verdict(&auth, &json!({})), Err(AuthError::KeysUnavailable));
    jwt.refetch().await.unwrap();
    assert_eq!(verdict(&auth, &json!({})), Ok(Text::from("alice")));
    assert!(jwt.refetch().await.is_err(), "larger than a key set may be");
    assert_eq!(verdict(&auth, &json!({})), Ok(Text::from("alice")));
}

#[tokio::test]
async fn without_keys_to_fetch_keeping_fresh_ends_at_once() {
    authenticator(&static_token()).keep_fresh().await;
}
