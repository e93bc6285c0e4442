//! A cluster with a proxy before it: clients come through the proxy or past it, as they choose.

use crate::broker::Cluster;
use crate::proxy::Proxy;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;

/// From a broker's port to that of its listener for the proxy, see `scripts/kafka`.
const PROXIED_LISTENER: u16 = 100;

pub struct Proxied {
    pub cluster: Cluster,
    pub proxy: Proxy,
}

impl Proxied {
    pub fn start(brokers: usize, settings: &[&str]) -> Proxied {
        let proxy = Proxy::listen(brokers);
        let ports: Vec<String> = proxy.ports().iter().map(u16::to_string).collect();
        let cluster = Cluster::start_with(brokers, settings, &["--proxied", &ports.join(",")]);
        let listener = |server: &str| {
            let (_, port) = server.split_once(':').expect("host:port");
            let port: u16 = port.parse().expect("a port");
            SocketAddrV4::new(Ipv4Addr::LOCALHOST, port + PROXIED_LISTENER)
        };
        proxy.serve(cluster.bootstrap.split(',').map(listener).collect());
        Proxied { cluster, proxy }
    }

    /// The directory of the brokers, each with its files in `node-N/data`.
    pub fn data(&self) -> PathBuf {
        let script = self.cluster.script.lock().expect("nobody panicked with it");
        script.directory.path().join("kafka")
    }
}
