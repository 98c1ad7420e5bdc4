//! Asks the agent over HTTP, as Prometheus does: one connection for many questions.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::{LIMIT, NodeError, io, wrong};

/// A connection to a server of the agent.
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn open(address: SocketAddr) -> Result<Self, NodeError> {
        let stream = TcpStream::connect(address).map_err(io(format!("connect to {address}")))?;
        stream.set_nodelay(true).map_err(io("set up the connection"))?;
        stream.set_read_timeout(Some(LIMIT)).map_err(io("set up the connection"))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// The code and the body of an answer.
    ///
    /// # Errors
    /// When there is none, or it is not HTTP.
    pub fn get(&mut self, path: &str) -> Result<(u16, String), NodeError> {
        let failed = || format!("GET {path}");
        write!(self.stream.get_mut(), "GET {path} HTTP/1.1\r\nHost: agent\r\n\r\n").map_err(io(failed()))?;
        let line = self.line(path)?;
        let code = line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let code = code.ok_or_else(|| wrong(failed())(format!("answers with {line:?}")))?;
        let mut length = None;
        loop {
            let line = self.line(path)?;
            let Some((name, value)) = line.split_once(':') else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse::<usize>().ok();
            }
        }
        let mut body = vec![0; length.ok_or_else(|| wrong(failed())("no length"))?];
        self.stream.read_exact(&mut body).map_err(io(failed()))?;
        Ok((code, String::from_utf8_lossy(&body).into_owned()))
    }

    fn line(&mut self, path: &str) -> Result<String, NodeError> {
        let mut line = String::new();
        self.stream.read_line(&mut line).map_err(io(format!("GET {path}")))?;
        Ok(line.trim_end().to_owned())
    }
}

/// The value of the first series of a metric whose labels contain all these texts.
#[must_use]
pub fn value(metrics: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let of_metric = |line: &&str| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|label| line.contains(label))
    };
    metrics.lines().find(of_metric)?.rsplit_once(' ')?.1.parse().ok()
}
