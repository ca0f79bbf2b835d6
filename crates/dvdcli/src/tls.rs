//! TLS to a plugin elsewhere.

use std::path::Path;
use std::sync::Arc;

use dunnage_model::{Error, Result};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_rustls::{TlsConnector, rustls};

use crate::find::TlsFiles;

/// Connects to `HOST:PORT`.
pub async fn connect(host: &str, files: &TlsFiles) -> Result<TlsStream<TcpStream>> {
    let lost =
        |e: &dyn std::fmt::Display| Error::unavailable(format!("no TLS with {host}: {e}"), "look whether it runs, and at its certificates");
    let config = config(files)?;
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name).trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(name).map_err(|e| lost(&e))?;
    let stream = TcpStream::connect(host).await.map_err(|e| lost(&e))?;
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|e| lost(&e))
}

fn config(files: &TlsFiles) -> Result<ClientConfig> {
    let bad = |what: &Path, e: &dyn std::fmt::Display| {
        Error::invalid("TLSConfig", format!("{}: {e}", what.display()), "correct the plugin's JSON file")
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::internal(format!("TLS: {e}")))?;
    let builder = if files.insecure_skip_verify {
        eprintln!("dvdcli: InsecureSkipVerify: the plugin's certificate is not checked");
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(ring::default_provider())))
    } else {
        let mut roots = RootCertStore::empty();
        if files.ca_file.as_os_str().is_empty() {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        } else {
            for certificate in certificates(&files.ca_file)? {
                roots.add(certificate).map_err(|e| bad(&files.ca_file, &e))?;
            }
        }
        builder.with_root_certificates(roots)
    };
    if files.cert_file.as_os_str().is_empty() {
        return Ok(builder.with_no_client_auth());
    }
    let key = PrivateKeyDer::from_pem_file(&files.key_file).map_err(|e| bad(&files.key_file, &e))?;
    builder.with_client_auth_cert(certificates(&files.cert_file)?, key).map_err(|e| bad(&files.cert_file, &e))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let bad = |e: &dyn std::fmt::Display| Error::invalid("TLSConfig", format!("{}: {e}", file.display()), "correct the plugin's JSON file");
    let all = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(|e| bad(&e))?;
    if all.is_empty() { Err(bad(&"there is no certificate in it")) } else { Ok(all) }
}

/// Believes anybody's certificate, as `InsecureSkipVerify` asks; that the peer has its key is checked all the same.
#[derive(Debug)]
struct Anybody(CryptoProvider);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
