//! The agent as a process: its addresses, its log, what it uses.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use serde_json::Value;

use super::http::Connection;
use super::{LIMIT, NodeError, io, wrong};

/// Lines of the log that are kept.
const KEPT: usize = 1000;

#[derive(Default)]
struct Lines {
    kept: VecDeque<String>,
    /// How many there were before those that are kept.
    gone: usize,
    ended: bool,
}

/// What the agent has logged.
#[derive(Clone, Default)]
pub struct Log(Arc<(Mutex<Lines>, Condvar)>);

impl Log {
    fn read(&self, stderr: ChildStderr) {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            self.change(|lines| {
                lines.kept.push_back(line);
                if lines.kept.len() > KEPT {
                    lines.kept.pop_front();
                    lines.gone += 1;
                }
            });
        }
        self.change(|lines| lines.ended = true);
    }

    fn change(&self, change: impl FnOnce(&mut Lines)) {
        change(&mut self.0.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.0.1.notify_all();
    }

    /// The end of the log.
    #[must_use]
    pub fn tail(&self) -> String {
        let lines = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.kept.iter().skip(lines.kept.len().saturating_sub(12)).map(|line| format!("{line}\n")).collect()
    }

    /// The next line, from the `from`th on, with this message; `from` is moved behind it.
    fn next(&self, from: &mut usize, message: &str) -> Result<Value, NodeError> {
        let deadline = Instant::now() + LIMIT;
        let late = || NodeError::Late { what: format!("log line {message:?}"), log: self.tail() };
        let mut lines = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let skip = from.saturating_sub(lines.gone);
            for line in lines.kept.iter().skip(skip) {
                *from = (*from).max(lines.gone) + 1;
                let entry: Value = serde_json::from_str(line).unwrap_or_default();
                if entry["message"] == message {
                    return Ok(entry);
                }
            }
            let left = deadline.checked_duration_since(Instant::now()).filter(|_| !lines.ended);
            let Some(left) = left else {
                drop(lines);
                return Err(late());
            };
            lines = self.0.1.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A running agent; killed when it is dropped.
pub struct Agent {
    child: Child,
    /// Where it serves its own metrics.
    pub address: SocketAddr,
    /// Where it serves dcgm-exporter's.
    pub compatible: SocketAddr,
    log: Log,
    read: usize,
    /// When it was started.
    pub started: Instant,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Agent {
    /// Starts it and waits until it serves.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(command: &mut Command) -> Result<Self, NodeError> {
        let started = Instant::now();
        let program = command.get_program().to_string_lossy().into_owned();
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.map_err(io(format!("start {program}")))?;
        let log = Log::default();
        if let Some(stderr) = child.stderr.take() {
            let log = log.clone();
            // Ends with the process.
            std::thread::spawn(move || log.read(stderr));
        }
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut agent = Self { child, address: nowhere, compatible: nowhere, log, read: 0, started };
        agent.address = agent.listen("started")?;
        agent.compatible = agent.listen("metrics under the names of dcgm-exporter")?;
        Ok(agent)
    }

    fn listen(&mut self, message: &str) -> Result<SocketAddr, NodeError> {
        let line = self.logged(message)?;
        line["listen"].as_str().unwrap_or_default().parse().map_err(wrong("address in the log"))
    }

    /// Waits for the next line of the log with this message.
    ///
    /// # Errors
    /// When none comes in time.
    pub fn logged(&mut self, message: &str) -> Result<Value, NodeError> {
        self.log.next(&mut self.read, message)
    }

    /// Its own metrics now.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metrics(&self) -> Result<String, NodeError> {
        Ok(Connection::open(self.address)?.get("/metrics")?.1)
    }

    /// Waits until its metrics are as wanted, and gives them.
    ///
    /// # Errors
    /// When they are not in time.
    pub fn metrics_when(&self, what: &str, wanted: impl Fn(&str) -> bool) -> Result<String, NodeError> {
        let (deadline, mut connection) = (Instant::now() + LIMIT, Connection::open(self.address)?);
        loop {
            let (_, metrics) = connection.get("/metrics")?;
            if wanted(&metrics) {
                return Ok(metrics);
            }
            if Instant::now() > deadline {
                return Err(NodeError::Late { what: what.to_owned(), log: self.log.tail() });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// CPU time that it has used.
    ///
    /// # Errors
    /// When it has ended.
    pub fn cpu(&self) -> Result<Duration, NodeError> {
        let pid = Pid::from_raw(i32::try_from(self.id()).unwrap_or_default());
        let clock = ClockId::pid_cpu_clock_id(pid).and_then(clock_gettime);
        clock.map(Duration::from).map_err(|error| io("read the agent's CPU time")(error.into()))
    }

    /// CPU time of each of its threads that has used any, by name.
    ///
    /// # Errors
    /// When it has ended.
    pub fn cpu_of_threads(&self) -> Result<BTreeMap<String, Duration>, NodeError> {
        let dir = format!("/proc/{}/task", self.id());
        let mut threads: BTreeMap<String, Duration> = BTreeMap::new();
        for thread in std::fs::read_dir(&dir).map_err(io(format!("list {dir}")))?.flatten() {
            let read = |file: &str| std::fs::read_to_string(thread.path().join(file)).unwrap_or_default();
            let used = read("schedstat").split_whitespace().next().and_then(|ns| ns.parse().ok());
            let name = read("comm").trim().to_owned();
            *threads.entry(name).or_default() += Duration::from_nanos(used.unwrap_or_default());
        }
        Ok(threads)
    }

    /// A field of its `/proc/PID/status` in bytes, for example `VmRSS`.
    ///
    /// # Errors
    /// When it has ended.
    pub fn memory(&self, field: &str) -> Result<u64, NodeError> {
        let path = format!("/proc/{}/status", self.id());
        let text = std::fs::read_to_string(&path).map_err(io(format!("read {path}")))?;
        let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.map(|kib| kib * 1024).ok_or_else(|| wrong(path)(format!("no {field}")))
    }

    /// Asks it to stop and waits for that.
    ///
    /// # Errors
    /// When it does not.
    pub fn stop(mut self) -> Result<ExitStatus, NodeError> {
        let pid = Pid::from_raw(i32::try_from(self.id()).unwrap_or_default());
        let asked = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        asked.map_err(|error| io("stop the agent")(error.into()))?;
        self.child.wait().map_err(io("wait for the agent"))
    }

    /// Waits for the end of one that has said that it ends, and gives what it said last.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn ended(mut self) -> Result<(ExitStatus, String), NodeError> {
        let status = self.child.wait().map_err(io("wait for the agent"))?;
        Ok((status, self.log.tail()))
    }

    /// Kills it, and waits until it is gone.
    pub fn kill(&mut self) {
        // One that has ended is as good.
        drop(self.child.kill());
        drop(self.child.wait());
    }

    /// The error about something that did not come in time.
    #[must_use]
    pub fn late(&self, what: impl Into<String>) -> NodeError {
        NodeError::Late { what: what.into(), log: self.log.tail() }
    }
}
