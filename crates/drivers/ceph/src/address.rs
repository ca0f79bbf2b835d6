//! The address of one client instance: what the blocklist knows it by.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use dunnage_model::{Error, Result};
use serde::{Deserialize, Serialize};

/// One connection of one process to a cluster: `IP:PORT/NONCE`. The nonce is drawn anew for every connection, so a client that
/// comes back is another one.
///
/// Ceph writes it with the protocol before it where it feels like it (`v1:`, `v2:`, `any:`); the blocklist makes no difference
/// between them, and neither do we. A nonce of 0 means every client of the machine in Ceph's own reading, and is refused: whoever
/// fences one client must not fence its neighbours by accident.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClientAddress {
    at: SocketAddr,
    nonce: u32,
}

impl ClientAddress {
    /// All addresses in what librados says of itself: one, or several as `[v2:…,v1:…]`. Each is there once.
    ///
    /// # Errors
    /// When one of them is none.
    pub fn parse_all(text: &str) -> Result<Vec<Self>> {
        let within = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        // The brackets of a lone IPv6 address do not enclose all of it.
        let mut all = within.unwrap_or(text).split(',').map(str::parse).collect::<Result<Vec<Self>>>()?;
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }
}

impl FromStr for ClientAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = |why: &str| {
            let detail = format!("{text:?} is not the address of a Ceph client: {why}");
            Error::invalid("address", detail, "give it as IP:PORT/NONCE, as 'rbd status' shows it")
        };
        let bare = ["v1:", "v2:", "any:"].iter().find_map(|kind| text.strip_prefix(kind)).unwrap_or(text);
        let (at, nonce) = bare.split_once('/').ok_or_else(|| refused("there is no nonce"))?;
        // The standard library's parser is strict already: no names, no scope that is not a number, no leading zeros in an IPv4.
        let at = at.parse::<SocketAddr>().map_err(|_| refused("it does not begin with IP:PORT"))?;
        if !nonce.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(refused("the nonce is no number"));
        }
        match nonce.parse() {
            Ok(0) => Err(refused("a nonce of 0 stands for every client of that machine")),
            Ok(nonce) => Ok(ClientAddress { at, nonce }),
            Err(_) => Err(refused("the nonce is no number of 32 bits")),
        }
    }
}

impl fmt::Display for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.at, self.nonce)
    }
}

impl TryFrom<String> for ClientAddress {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<ClientAddress> for String {
    fn from(address: ClientAddress) -> String {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_protocol_before_an_address_makes_no_other_client_of_it() {
        let plain: ClientAddress = "127.0.0.1:0/3710147553".parse().expect("plain");
        assert_eq!(plain.to_string(), "127.0.0.1:0/3710147553");
        for kind in ["v1:", "v2:", "any:"] {
            assert_eq!(format!("{kind}{plain}").parse(), Ok(plain));
        }
        assert_eq!(ClientAddress::parse_all(&format!("[v2:{plain},v1:{plain}]")), Ok(vec![plain]));
        assert_eq!(ClientAddress::parse_all(&format!("v2:{plain}")), Ok(vec![plain]));
    }

    #[test]
    fn an_ipv6_address_keeps_its_own_brackets() {
        let six: ClientAddress = "v2:[fd00::7]:0/12".parse().expect("IPv6");
        assert_eq!(six.to_string(), "[fd00::7]:0/12");
        assert_eq!(ClientAddress::parse_all("[fd00::7]:0/12"), Ok(vec![six]));
        assert_eq!(ClientAddress::parse_all("[v2:[fd00::7]:0/12,v1:[fd00::7]:0/12]"), Ok(vec![six]));
    }

    #[test]
    fn what_could_fence_more_than_one_client_is_no_address() {
        for text in ["10.0.0.7", "10.0.0.7:0", "10.0.0.7:0/0", "10.0.0.0/24", "10.0.0.7:0/", "10.0.0.7/5", "host:0/5", ":/0", "-", ""] {
            let error = text.parse::<ClientAddress>().expect_err(text);
            assert_eq!(error.word(), "invalid_argument", "{text}");
        }
        for text in ["10.0.0.7:0/+5", "10.0.0.7:0/5 ", " 10.0.0.7:0/5", "v3:10.0.0.7:0/5", "10.0.0.7:0/4294967296", "10.0.0.7:0/5/6"] {
            assert!(text.parse::<ClientAddress>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_address_is_read_back_as_it_was_written(at: SocketAddr, nonce in 1_u32..) {
            let address = ClientAddress { at, nonce };
            // Ceph knows neither flow nor scope.
            prop_assume!(!matches!(at, SocketAddr::V6(six) if six.scope_id() != 0 || six.flowinfo() != 0));
            prop_assert_eq!(address.to_string().parse(), Ok(address));
            let json = serde_json::to_string(&address).expect("json");
            prop_assert_eq!(serde_json::from_str::<ClientAddress>(&json).expect("back"), address);
        }

        #[test]
        fn no_text_crashes_the_reader(text: String) {
            let _ = text.parse::<ClientAddress>();
            let _ = ClientAddress::parse_all(&text);
        }
    }
}
