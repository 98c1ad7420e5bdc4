//! Messages that nobody should send, to a real seat, over the market's own transport.
//!
//! A stranger has a key of its own; a member has the transport key of `home`, which is in the market record, and says what
//! no member would say. Both must be dropped and counted, and the next Job is served as if nothing had been.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, StreamExt as _};
use libp2p::identity::Keypair;
use libp2p::request_response as rr;
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder};
use serde_json::{Value, json};
use vendue_auction_core::secret;
use vendue_auction_core::wire::{Body, Fetch, Header, Kind, Message, peek_kind};
use vendue_auction_core::{
    Home, HomeInput, HomeKeyFile, HomeKeys, HomeOutput, MarketRecord, NewOrder, SignedMarketRecord,
};
use vendue_crds::conditions::job as types;
use vendue_market::Requirements;
use vendue_testbed::wait::{self, Poll};

use crate::env::{Env, Failure, Process, Scenario, check};
use crate::jobs::job;

const PROTOCOL: StreamProtocol = StreamProtocol::new("/vendue/round/1");
const LIMIT: Duration = Duration::from_secs(15);
const SEAT: &str = "alpha";

/// Writes bytes as they are, whatever a receiver would accept.
#[derive(Clone, Default)]
struct AsTheyAre;

impl rr::Codec for AsTheyAre {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = ();

    async fn read_request<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<Vec<u8>> {
        // What the seat asks is read and not answered.
        let mut request = Vec::new();
        io.take(1 << 21).read_to_end(&mut request).await?;
        Ok(request)
    }

    async fn read_response<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<()> {
        // An empty message.
        io.read_exact(&mut [0; 4]).await
    }

    async fn write_request<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        bytes: Vec<u8>,
    ) -> io::Result<()> {
        io.write_all(&bytes).await?;
        io.flush().await
    }

    async fn write_response<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        _: &mut T,
        (): (),
    ) -> io::Result<()> {
        Ok(())
    }
}

/// Whoever has a key and knows where a seat is.
struct Talker {
    swarm: Swarm<rr::Behaviour<AsTheyAre>>,
    seat: PeerId,
}

impl Talker {
    fn new(key: Keypair, seat: PeerId, address: &Multiaddr) -> Result<Self, Failure> {
        let config = rr::Config::default().with_request_timeout(LIMIT);
        let protocol = [(PROTOCOL, rr::ProtocolSupport::Full)];
        let mut swarm = SwarmBuilder::with_existing_identity(key)
            .with_tokio()
            .with_quic()
            .with_behaviour(|_| rr::Behaviour::with_codec(AsTheyAre, protocol, config))?
            .with_swarm_config(|c| c.with_idle_connection_timeout(LIMIT))
            .build();
        swarm.add_peer_address(seat, address.clone());
        Ok(Self { swarm, seat })
    }

    /// Sends bytes with the length that they have, and says whether the seat acknowledged them.
    async fn say(&mut self, message: &[u8]) -> Result<bool, Failure> {
        let length = u32::try_from(message.len())?;
        self.write([&length.to_be_bytes(), message].concat()).await
    }

    /// Writes a stream as it is, and says whether the seat acknowledged it.
    async fn write(&mut self, bytes: Vec<u8>) -> Result<bool, Failure> {
        let sent = self.swarm.behaviour_mut().send_request(&self.seat, bytes);
        let answered = async {
            loop {
                match self.swarm.select_next_some().await {
                    SwarmEvent::Behaviour(rr::Event::Message {
                        message: rr::Message::Response { request_id, .. },
                        ..
                    }) if request_id == sent => return true,
                    SwarmEvent::Behaviour(rr::Event::OutboundFailure { request_id, .. })
                        if request_id == sent =>
                    {
                        return false;
                    }
                    _ => {}
                }
            }
        };
        Ok(tokio::time::timeout(LIMIT, answered).await?)
    }
}

/// Waits until the seat has dropped more messages for a reason than before.
async fn counted(env: &Env, reason: &str, before: f64) -> Scenario {
    let series = format!("messages_dropped_total{{reason=\"{reason}\"}}");
    wait::until(&format!("{SEAT} counts {reason}"), LIMIT, Duration::from_millis(200), || async {
        Ok(match env.metric(SEAT, Process::Auction, &series).await {
            Ok(now) if now > before => Poll::Ready(()),
            Ok(now) => Poll::Pending(format!("{now}, before {before}")),
            Err(error) => Poll::Pending(error.to_string()),
        })
    })
    .await?;
    Ok(())
}

async fn dropped(env: &Env, reason: &str) -> Result<f64, Failure> {
    env.metric(SEAT, Process::Auction, &format!("messages_dropped_total{{reason=\"{reason}\"}}")).await
}

/// Junk of every kind reaches a seat: it is refused or dropped, it is counted, and the next Job is awarded.
pub async fn foreign_and_malformed_messages_change_nothing(env: &Env) -> Scenario {
    let record = std::fs::read_to_string(env.deployment.deal.record())?;
    let record = SignedMarketRecord::from_json(&record)?.record;
    let seat = record.seats.iter().find(|s| s.provider == SEAT).ok_or("no such seat")?;
    let address: Multiaddr = seat.addresses.first().ok_or("the seat has no address")?.parse()?;
    let peer: PeerId = seat.peer_id.parse()?;
    let restarts = restarts(env).await?;

    let before = dropped(env, "foreign_peer").await?;
    let mut stranger = Talker::new(Keypair::generate_ed25519(), peer, &address)?;
    check(!stranger.say(b"let me in").await?, || "a stranger's message was acknowledged".into())?;
    counted(env, "foreign_peer", before).await?;

    let (key, home) = member(&env.deployment.deal.key_file("home"), &record)?;
    as_member(env, &mut Talker::new(key, peer, &address)?, &record, home).await?;

    let ns = env.namespace("junk").await?;
    env.home().apply(&ns, &job("served", "print(1)").manifest()).await?;
    env.condition_true(&ns, "served", types::AWARDED, 60).await?;
    env.delete_job(&ns, "served", 60).await?;
    let now = self::restarts(env).await?;
    check(now == restarts, || format!("the seat was restarted: {restarts} before, {now} now"))?;
    env.nothing_left(60).await
}

/// How often the seat's process was started again.
async fn restarts(env: &Env) -> Result<i32, Failure> {
    let pod = crate::faults::pod_name(env, SEAT, "vendue-auction").await?;
    let found = env.pods(SEAT, vendue_testbed::deploy::NAMESPACE).get(&pod).await?;
    Ok(found.status.iter().flat_map(|s| s.container_statuses.iter().flatten()).map(|c| c.restart_count).sum())
}

/// The transport key of a cluster, and its home's state machine.
fn member(file: &Path, record: &MarketRecord) -> Result<(Keypair, Home), Failure> {
    let text = std::fs::read_to_string(file)?;
    let value: Value = serde_json::from_str(&text)?;
    let mut transport = hex::decode(value["transport"].as_str().unwrap_or_default())?;
    let keys: HomeKeyFile = secret::from_json(&value["home"].to_string())?;
    let keys = HomeKeys::from_file(&keys)?;
    let index = keys.check(record)?;
    Ok((Keypair::ed25519_from_bytes(&mut transport)?, Home::new(record.clone().into(), index, keys)))
}

/// A member says what no member says; then it says something good twice.
async fn as_member(env: &Env, member: &mut Talker, record: &MarketRecord, mut home: Home) -> Scenario {
    let before = dropped(env, "malformed").await?;
    check(member.say(b"\xff\xffneither kind nor header").await?, || "garbage breaks the connection".into())?;
    counted(env, "malformed", before).await?;

    let before = dropped(env, "oversize").await?;
    check(!member.write(vec![0xff; 64]).await?, || "four gigabytes were announced and acknowledged".into())?;
    counted(env, "oversize", before).await?;

    let before = dropped(env, "foreign").await?;
    let header = Header { kind: Kind::Fetch, market: [7; 8], epoch: record.epoch, round: 0, seat: 0 };
    let question = Message { header, body: Body::Fetch(Fetch::Proof([7; 32])), signature: None };
    member.say(&question.encode()).await?;
    counted(env, "foreign", before).await?;

    let before = dropped(env, "duplicate").await?;
    let now = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
    let order = NewOrder {
        terms: Box::default(),
        job: "junk".into(),
        attempt: 1,
        requirements: nobody_has()?,
        commitment: [7; 32],
        expires_ms: now + 30_000,
    };
    home.handle(now, HomeInput::Submit(Box::new(order)));
    let begins = home.next_wake().unwrap_or(now);
    let orders = sent(home.handle(begins, HomeInput::Tick));
    let order = orders.iter().find(|m| peek_kind(m) == Some(Kind::Order)).ok_or("the home sends no order")?;
    for _ in 0..2 {
        check(member.say(order).await?, || "an order was not acknowledged".into())?;
    }
    counted(env, "duplicate", before).await?;
    for message in sent(home.handle(now, HomeInput::Withdraw { job: "junk".into(), attempt: 1 })) {
        member.say(&message).await?;
    }
    Ok(())
}

/// What a home says to this seat.
fn sent(outputs: Vec<HomeOutput>) -> Vec<Vec<u8>> {
    let to_all = |output| match output {
        HomeOutput::Broadcast(bytes) => Some(bytes),
        _ => None,
    };
    outputs.into_iter().filter_map(to_all).collect()
}

/// What no provider has: the order is to be known, not served.
fn nobody_has() -> Result<Requirements, Failure> {
    Ok(serde_json::from_value(json!({
        "gpu_models": ["Z9000"], "workers": 1, "gpus_per_worker": 1, "cpu_millis_per_worker": 100,
        "memory_mib_per_worker": 128, "max_price": "1.00", "run_seconds": 60, "image": "none",
    }))?)
}
