//! JWTs of a made-up issuer. Its private key was thrown away when they were signed, so they say for ever what they say
//! here; `exp` is 2013 for the expired one, and 2100 for the others.

/// The issuer's published keys.
pub(crate) const KEYS: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","alg":"EdDSA","use":"sig","kid":"suite","x":"P3mGgyViLTUPU8B0zjHywqHmhY1riVG-Ds5nCXsHMTw"}]}"#;

/// Of `ada`, for `ebb`.
pub(crate) const VALID: &str = "eyJhbGciOiJFZERTQSIsInR5cCI6IkpXVCIsImtpZCI6InN1aXRlIn0.eyJpc3MiOiJodHRwczovL2lzc3Vlci5leGFtcGxlIiwiYXVkIjoiZWJiIiwic3ViIjoiYWRhIiwiZXhwIjo0MTAyNDQ0ODAwfQ.01SFs8szj8_xvpNPORy26b3UObV2DOYt-6aFdNE4VQstxyELMSPILg35KVpg1nOTgYfkXsTpan6oKnitrLBVBA";

/// Valid until 2013.
pub(crate) const EXPIRED: &str = "eyJhbGciOiJFZERTQSIsInR5cCI6IkpXVCIsImtpZCI6InN1aXRlIn0.eyJpc3MiOiJodHRwczovL2lzc3Vlci5leGFtcGxlIiwiYXVkIjoiZWJiIiwic3ViIjoiYWRhIiwiZXhwIjoxMzU3MDIzNjAwfQ.2XAhNbK7I9uNfAFmKIxHtNr52QlJrvi2aGdgRjrRQtHM-x90yDd_aFtbSUqGitQ0r0Q6MJMVjQSgxLJUJB_QAA";

/// For another audience.
pub(crate) const FOR_OTHERS: &str = "eyJhbGciOiJFZERTQSIsInR5cCI6IkpXVCIsImtpZCI6InN1aXRlIn0.eyJpc3MiOiJodHRwczovL2lzc3Vlci5leGFtcGxlIiwiYXVkIjoib3RoZXJzIiwic3ViIjoiYWRhIiwiZXhwIjo0MTAyNDQ0ODAwfQ.h45ZFOXQ9_MjUzYLY5pggP9XhdYljK6SibCrMQaNwa7QGb3r3Da4o29eHkCDcVd5VSWfFAceV53AqoaxdVfeDg";

/// Valid from 2099 on.
pub(crate) const NOT_YET: &str = "eyJhbGciOiJFZERTQSIsInR5cCI6IkpXVCIsImtpZCI6InN1aXRlIn0.eyJpc3MiOiJodHRwczovL2lzc3Vlci5leGFtcGxlIiwiYXVkIjoiZWJiIiwic3ViIjoiYWRhIiwiZXhwIjo0MTAyNDQ0ODAwLCJuYmYiOjQxMDI0NDAwMDB9.Ypw4swxT7Jh-THQKYHRtD__Jfe8uxXJIw5BXQi5pTSYOhsFj9xoGHb86i6yo3PPEhlGDQ5pLx-VZU1FqwRL0BA";
