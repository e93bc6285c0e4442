//! A cluster with a proxy before it: clients come through the proxy or past it, as they choose.

use crate::broker::Cluster;
use crate::proxy::Proxy;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};

/// From a broker's port to that of its listener for the proxy, see `scripts/kafka`.
const PROXIED_LISTENER: u16 = 100;

pub struct Proxied {
    pub cluster: Cluster,
    pub proxy: Proxy,
}

impl Proxied {
    pub fn start(brokers: usize, settings: &[&str]) -> Proxied {
        Proxied::start_in(None, &vec![0; brokers], settings, None)
    }

    /// With the proxy at these ports, one for each broker, and the brokers' files below a directory, where they may be from before.
    /// `option` is one more of `scripts/kafka run`.
    pub fn start_in(directory: Option<&Path>, ports: &[u16], settings: &[&str], option: Option<&str>) -> Proxied {
        let proxy = Proxy::listen(ports);
        let listening: Vec<String> = proxy.ports().iter().map(u16::to_string).collect();
        let listening = listening.join(",");
        let options: Vec<&str> = ["--proxied", &listening].into_iter().chain(option).collect();
        let cluster = match directory {
            Some(directory) => Cluster::start_in(directory, ports.len(), settings, &options),
            None => Cluster::start_with(ports.len(), settings, &options),
        };
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
        script.directory.join("kafka")
    }
}
