//! Which IP addresses are on the public internet. Everything else is refused, so that no client can make the server
//! ask its own machine, its neighbours or a cloud's metadata service.
//!
//! After the IANA special-purpose address registries
//! ([IPv4](https://www.iana.org/assignments/iana-ipv4-special-registry),
//! [IPv6](https://www.iana.org/assignments/iana-ipv6-special-registry)).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::OutboundError;

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(first: u16, second: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(first, second, 0, 0, 0, 0, 0, 0), prefix)
}

/// IPv4 that is not public.
const REFUSED_V4: [Ipv4Net; 17] = [
    v4(0, 0, 0, 0, 8),          // this network
    v4(10, 0, 0, 0, 8),         // private
    v4(100, 64, 0, 0, 10),      // carrier-grade NAT
    v4(127, 0, 0, 0, 8),        // loopback
    v4(168, 63, 129, 16, 32),   // Azure's platform services: a public number, answered inside every machine
    v4(169, 254, 0, 0, 16),     // link-local, metadata services of clouds
    v4(172, 16, 0, 0, 12),      // private
    v4(192, 0, 0, 0, 24),       // IETF protocol assignments
    v4(192, 0, 2, 0, 24),       // documentation
    v4(192, 88, 99, 0, 24),     // 6to4 relays, given up
    v4(192, 168, 0, 0, 16),     // private
    v4(198, 18, 0, 0, 15),      // benchmarking
    v4(198, 51, 100, 0, 24),    // documentation
    v4(203, 0, 113, 0, 24),     // documentation
    v4(224, 0, 0, 0, 4),        // multicast
    v4(240, 0, 0, 0, 4),        // reserved
    v4(255, 255, 255, 255, 32), // broadcast
];

/// The only part of IPv6 that is handed out for the public internet. What lies outside: unspecified, loopback,
/// IPv4-compatible, IPv4-mapped, discard, segment routing, unique local, link-local, site-local, multicast.
const GLOBAL_V6: Ipv6Net = v6(0x2000, 0, 3);

/// IPv6 inside [`GLOBAL_V6`] that is not public, or that reaches IPv4 by a tunnel.
const REFUSED_V6: [Ipv6Net; 4] = [
    v6(0x2001, 0, 23),      // IETF protocol assignments: Teredo, benchmarking, ORCHID
    v6(0x2001, 0x0db8, 32), // documentation
    v6(0x2002, 0, 16),      // 6to4
    v6(0x3fff, 0, 20),      // documentation
];

/// NAT64's well-known prefix: on networks with IPv6 only, every name with IPv4 addresses resolves into it, so the
/// address inside decides. Its local-use prefix `64:ff9b:1::/48` is refused with all outside [`GLOBAL_V6`].
const NAT64: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);

/// Whether `address` is on the public internet.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    !REFUSED_V4.iter().any(|network| network.contains(&address))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    if NAT64.contains(&address) {
        let [.., a, b, c, d] = address.octets();
        return is_public_v4(Ipv4Addr::new(a, b, c, d));
    }
    GLOBAL_V6.contains(&address)
        && !REFUSED_V6.iter().any(|network| network.contains(&address))
        && !is_isatap(address)
}

/// An ISATAP interface identifier (RFC 5214), whatever the prefix: a tunnel to the IPv4 address in its last 32 bits.
fn is_isatap(address: Ipv6Addr) -> bool {
    let [.., high, low, _, _] = address.segments();
    high & !0x0200 == 0 && low == 0x5efe
}

/// Which addresses may be asked: public ones and the configured exceptions.
#[derive(Debug, Clone, Default)]
pub struct AddressPolicy {
    exceptions: Vec<IpNet>,
}

impl AddressPolicy {
    /// Public addresses, and those inside `allow_networks` (`10.1.0.0/16`, `fd00::/8`). An exception holds for the
    /// addresses as they are written: `10.0.0.0/8` does not let `::ffff:10.0.0.1` pass.
    pub fn new(allow_networks: &[String]) -> Result<Self, OutboundError> {
        let parse = |text: &String| {
            text.trim().parse::<IpNet>().map_err(|_| OutboundError::Config {
                setting: "allow_networks",
                value: text.clone(),
                reason:
                    "not a network; write an address and a prefix length: 10.1.0.0/16, 127.0.0.1/32, fd00::/8"
                        .into(),
            })
        };
        Ok(Self { exceptions: allow_networks.iter().map(parse).collect::<Result<_, _>>()? })
    }

    /// Whether `address` may be asked.
    pub fn permits(&self, address: IpAddr) -> bool {
        is_public(address) || self.exceptions.iter().any(|network| network.contains(&address))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Every form in which an IPv6 address can hold an IPv4 address.
    fn embeddings(address: Ipv4Addr) -> Vec<Ipv6Addr> {
        let [a, b, c, d] = address.octets().map(u16::from);
        let (high, low) = (a << 8 | b, c << 8 | d);
        vec![
            address.to_ipv6_mapped(),
            Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low), // IPv4-compatible
            Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, high, low), // IPv4-translated
            Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low), // NAT64
            Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, high, low), // NAT64, local use
            Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1), // 6to4
            Ipv6Addr::new(0x2001, 0, high, low, 0, 0, 0x3fff, 0x3fff), // Teredo server
            Ipv6Addr::new(0x2001, 0, 0x4136, 0xe378, 0x8000, 63, !high, !low), // Teredo client
            Ipv6Addr::new(0x2606, 0x4700, 0, 0, 0, 0x5efe, high, low), // ISATAP
            Ipv6Addr::new(0x2606, 0x4700, 0, 0, 0x0200, 0x5efe, high, low),
        ]
    }

    #[test]
    fn no_address_of_a_special_range_is_public() {
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.0",
            "10.255.255.255",
            "100.64.0.1",
            "100.100.100.200",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.255",
            "168.63.129.16",
            "169.254.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.0.192",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.1",
            "192.168.255.255",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.255",
            "224.0.0.1",
            "239.255.255.250",
            "240.0.0.1",
            "255.255.255.254",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "::127.0.0.1",
            "::8.8.8.8",
            "64:ff9b::10.0.0.1",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::8.8.8.8",
            "100::1",
            "2001::1",
            "2001:0:4136:e378::1",
            "2001:2::1",
            "2001:10::1",
            "2001:20::1",
            "2001:db8::1",
            "2002:7f00:1::1",
            "2002:808:808::1",
            "3fff::1",
            "3fff:fff::1",
            "4000::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fdff::1",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
            "2606:4700::5efe:10.0.0.1",
        ] {
            assert!(!is_public(ip(text)), "{text}");
        }
    }

    #[test]
    fn neighbours_of_special_ranges_are_public() {
        for text in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "168.63.129.15",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2001:db7::1",
            "2001:db9::1",
            "2003::1",
            "2606:4700::1111",
            "2a00:1450::1",
            "64:ff9b::8.8.8.8",
        ] {
            assert!(is_public(ip(text)), "{text}");
        }
    }

    #[test]
    fn an_exception_lets_its_network_pass_and_no_other() {
        let policy = AddressPolicy::new(&["10.1.0.0/16".into(), " fd00::/8 ".into()]).unwrap();
        for passes in ["10.1.2.3", "fd12::1", "8.8.8.8"] {
            assert!(policy.permits(ip(passes)), "{passes}");
        }
        for refused in ["10.2.0.1", "127.0.0.1", "fc00::1", "::ffff:10.1.2.3"] {
            assert!(!policy.permits(ip(refused)), "{refused}");
        }
    }

    #[test]
    fn a_bad_network_is_named_with_what_to_write() {
        for bad in ["10.0.0.0", "10.0.0.0/33", "localhost", "", "10.0.0/8"] {
            let message = AddressPolicy::new(&[bad.into()]).unwrap_err().to_string();
            assert!(
                message.contains("outbound.allow_networks") && message.contains("10.1.0.0/16"),
                "{message}"
            );
            assert!(message.contains(&format!("'{bad}'")), "{message}");
        }
    }

    proptest! {
        #[test]
        fn no_private_ipv4_passes_in_any_embedding(bits: u32, pick in 0_usize..7) {
            // The standard library's own idea of private is the judge, not the table above.
            let (base, mask) = [
                (0x0a00_0000, 8), (0x7f00_0000, 8), (0xa9fe_0000, 16), (0xac10_0000, 12), (0xc0a8_0000, 16),
                (0xe000_0000, 4), (0_u32, 8),
            ][pick];
            let address = Ipv4Addr::from_bits(base | bits & (u32::MAX >> mask));
            prop_assert!(
                address.is_private() || address.is_loopback() || address.is_link_local()
                    || address.is_multicast() || address.octets()[0] == 0
            );
            prop_assert!(!is_public(address.into()), "{address}");
            for form in embeddings(address) {
                prop_assert!(!is_public(form.into()), "{form} for {address}");
            }
        }

        #[test]
        fn an_embedded_address_is_never_more_public_than_itself(bits: u32) {
            let address = Ipv4Addr::from_bits(bits);
            for form in embeddings(address) {
                prop_assert!(!is_public(form.into()) || is_public(address.into()), "{form} for {address}");
            }
        }
    }
}
