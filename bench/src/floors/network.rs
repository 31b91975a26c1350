//! The network: a value sent to another thread over loopback, and sent back. Each side has a
//! runtime and a thread of its own, as processes have.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use anyhow::Context;
use hdrhistogram::Histogram;
use quinn::{ClientConfig, Endpoint, ServerConfig};
use rustls::RootCertStore;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::UdpSocket;
use tokio::sync::oneshot;

use super::{Args, record};
use crate::etcd::one_thread;
use crate::figures::latencies;

const ANY_PORT: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);
const SERVER_NAME: &str = "localhost";

pub(super) fn udp(args: &Args) -> anyhow::Result<Histogram<u64>> {
    let bytes = args.value_bytes;
    let runtime = one_thread()?;
    let (ready, address) = oneshot::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let echo = async move {
        let socket = UdpSocket::bind(ANY_PORT).await?;
        let _ = ready.send(socket.local_addr()?);
        tokio::select! {
            broken = send_back(socket, bytes) => broken,
            _ = stopped => anyhow::Ok(()),
        }
    };
    let server = thread::spawn(move || one_thread()?.block_on(echo));
    let measured = runtime.block_on(async {
        let socket = UdpSocket::bind(ANY_PORT).await?;
        socket.connect(address.await?).await?;
        let (value, mut answer) = (vec![1; bytes], vec![0; bytes]);
        round_trips(args, async || {
            socket.send(&value).await?;
            socket.recv(&mut answer).await?;
            Ok(())
        })
        .await
    })?;
    drop(stop);
    server.join().ok().context("the echo panicked")??;
    Ok(measured)
}

/// Sends each datagram back to its sender.
async fn send_back(socket: UdpSocket, bytes: usize) -> anyhow::Result<()> {
    let mut buffer = vec![0; bytes];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await?;
        socket.send_to(&buffer[..length], from).await?;
    }
}

/// Measures round trips over one long-lived stream.
pub(super) fn quic(args: &Args) -> anyhow::Result<Histogram<u64>> {
    let bytes = args.value_bytes;
    let (server_config, client_config) = certified()?;
    let (ready, address) = oneshot::channel();
    let echo = async move {
        let endpoint = Endpoint::server(server_config, SocketAddr::from(ANY_PORT))?;
        let _ = ready.send(endpoint.local_addr()?);
        let incoming = endpoint.accept().await.context("the endpoint was closed")?;
        let connection = incoming.await?;
        let (mut sender, mut receiver) = connection.accept_bi().await?;
        let mut buffer = vec![0; bytes];
        // Until the client is done and closes.
        while receiver.read_exact(&mut buffer).await.is_ok() {
            sender.write_all(&buffer).await?;
        }
        anyhow::Ok(())
    };
    let server = thread::spawn(move || one_thread()?.block_on(echo));
    let measured = one_thread()?.block_on(async {
        let endpoint = Endpoint::client(SocketAddr::from(ANY_PORT))?;
        let connecting = endpoint.connect_with(client_config, address.await?, SERVER_NAME)?;
        let connection = connecting.await?;
        let (mut sender, mut receiver) = connection.open_bi().await?;
        let (value, mut answer) = (vec![1; bytes], vec![0; bytes]);
        let measured = round_trips(args, async || {
            sender.write_all(&value).await?;
            receiver.read_exact(&mut answer).await?;
            Ok(())
        });
        let measured = measured.await?;
        connection.close(0_u32.into(), b"done");
        endpoint.wait_idle().await;
        anyhow::Ok(measured)
    })?;
    server.join().ok().context("the echo panicked")??;
    Ok(measured)
}

fn certified() -> anyhow::Result<(ServerConfig, ClientConfig)> {
    let made = rcgen::generate_simple_self_signed([SERVER_NAME.to_owned()])?;
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    let certificate = made.cert.der().clone();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone())?;
    let server = ServerConfig::with_single_cert(vec![certificate], key)?;
    let client = ClientConfig::with_root_certificates(Arc::new(roots))?;
    Ok((server, client))
}

#[allow(clippy::disallowed_methods, reason = "a floor is measured in real time")]
async fn round_trips(
    args: &Args,
    mut trip: impl AsyncFnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Histogram<u64>> {
    let mut all = latencies();
    for _ in 0..100 {
        trip().await?;
    }
    let until = Instant::now() + args.duration;
    while Instant::now() < until {
        let start = Instant::now();
        trip().await?;
        record(&mut all, start.elapsed());
    }
    Ok(all)
}
