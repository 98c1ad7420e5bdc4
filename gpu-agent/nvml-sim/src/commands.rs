//! What the subcommands do.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use vendue_nvml_sim::clock::Clock;
use vendue_nvml_sim::fault::{Event, Fault, ThrottleReason};
use vendue_nvml_sim::fleet::Fleet;
use vendue_nvml_sim::load::Work;
use vendue_nvml_sim::machine::Machine;
use vendue_nvml_sim::plugin::allocate::Layout;
use vendue_nvml_sim::script::{self, Plan};
use vendue_nvml_sim::state::{Device, DeviceHealth, DriverHealth, Process, State};
use vendue_nvml_sim::{library, mig, plugin, profile, source, telemetry};

use crate::{
    ClockArgs, Command, DevicePlugin, DriverState, Failure, Format, Health, Inject, LibraryArgs, Load, Mig,
    Set, Show, Start, Timeline,
};

const SECOND: u64 = 1_000_000_000;

pub(crate) fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Start(args) => start(args),
        Command::Show(args) => show(&args),
        Command::Set(args) => set(&args),
        Command::Load(args) => load(&args),
        Command::Inject(args) => inject(&args),
        Command::Timeline(args) => timeline(&args),
        Command::Mig(args) => split(&args),
        Command::Clock(args) => clock(&args),
        Command::Library(args) => older_library(&args),
        Command::DevicePlugin(args) => device_plugin(args),
        Command::Profiles => {
            for name in profile::names() {
                println!("{name}");
            }
            Ok(())
        }
    }
}

fn start(args: Start) -> Result<(), Failure> {
    let Start { file, profile, count, seed, driver_version, clock_rate } = args;
    if profile.len() != count.len() {
        return Err(Failure::Usage(format!("{} --profile but {} --count", profile.len(), count.len())));
    }
    let seed = seed.unwrap_or_else(|| {
        std::path::absolute(&file.state).unwrap_or_else(|_| file.state.clone()).to_string_lossy().into_owned()
    });
    let groups: Vec<_> = profile.into_iter().zip(count).collect();
    let now = source::now_unix_ns();
    let mut state = State::generate(&groups, &seed, now / 1_000_000)?;
    if clock_rate != 1 {
        state.clock = Clock::running(clock_rate, now, now);
    }
    for device in &mut state.devices {
        device.energy.at_ns = now;
    }
    if let Some(version) = driver_version {
        state.driver.version = version;
    }
    print_table(&Fleet::replace(&file.state, &state)?)
}

fn show(args: &Show) -> Result<(), Failure> {
    let fleet = Fleet::open(&args.file.state);
    match args.output {
        Format::Text => print_table(&fleet),
        Format::Json => print_json(&*fleet.machine()?.state().clone()),
    }
}

fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let error = |source| Failure::Json { operation: "print".to_owned(), source };
    println!("{}", serde_json::to_string_pretty(value).map_err(error)?);
    Ok(())
}

fn print_table(fleet: &Fleet) -> Result<(), Failure> {
    let machine = fleet.machine()?;
    let now = machine.at_real(source::now_unix_ns());
    println!("driver {} ({:?})", machine.state().driver.version, machine.driver(now).health);
    for moment in machine.devices(now) {
        let (t, condition) = (telemetry::read(&moment), moment.condition());
        println!(
            "{:>2}  {}  {}  {}  {:?}  {} %  {} W  {} MiB used",
            moment.device.index,
            condition.uuid,
            moment.profile.product_name,
            moment.device.pci.long(),
            condition.health,
            t.gpu_percent,
            t.power_milliwatts / 1000,
            t.memory_used_bytes >> 20,
        );
        for instance in &condition.mig.instances {
            println!(
                "    {}  {}  GPU instance {}",
                instance.uuid, instance.profile, instance.gpu_instance_id
            );
        }
        for p in moment.processes() {
            println!("    process {}  {} %  {} MiB", p.pid, p.sm_percent, p.memory_bytes >> 20);
        }
    }
    Ok(())
}

fn set(args: &Set) -> Result<(), Failure> {
    let fleet = Fleet::open(&args.file.state);
    let processes = args.processes.as_deref().map(parse_processes).transpose()?;
    let real = args.real_profile.as_deref().map(profile::built_in).transpose();
    let real = real.map_err(vendue_nvml_sim::state::StateError::from)?;
    fleet.set::<Failure>(|state| {
        if let Some(driver) = args.driver {
            state.driver.health = driver_health(driver);
        }
        if let Some((name, profile)) = &real {
            state.profiles.entry(name.clone()).or_insert_with(|| profile.clone());
        }
        let mut changed = Vec::new();
        let mut matched = 0;
        for device in &mut state.devices {
            let wanted = |id: &String| *id == device.uuid || id.parse() == Ok(device.index);
            if !args.device.as_ref().is_none_or(wanted) {
                continue;
            }
            matched += 1;
            change(device, args, processes.as_ref());
            if let Some((name, _)) = &real {
                device.disguise.real_profile = Some(name.clone());
            }
            if args.health.is_some() {
                changed.push(device.index);
            }
        }
        if let (Some(id), 0) = (&args.device, matched) {
            return Err(Failure::Usage(format!("no device {id:?}; see nvml-sim show")));
        }
        let at_ns = state.clock.at(source::now_unix_ns());
        for device in changed {
            let mut happen = |fault| state.events.push(Event { at_ns, device: Some(device), fault });
            // Whatever a script did to the device is over.
            happen(Fault::Recover);
            match args.health.map(device_health) {
                None | Some(DeviceHealth::Healthy) => {}
                Some(health) => happen(Fault::Health { health }),
            }
        }
        Ok(())
    })?;
    print_table(&fleet)
}

fn change(device: &mut Device, args: &Set, processes: Option<&Vec<Process>>) {
    device.ecc_uncorrected += u64::from(matches!(args.health, Some(Health::EccFailed)));
    device.gpu_utilization_percent = args.utilization.unwrap_or(device.gpu_utilization_percent);
    device.mig_enabled = args.mig.unwrap_or(device.mig_enabled);
    if let Some(processes) = processes {
        device.processes.clone_from(processes);
    }
    if let Some(uuid) = &args.uuid {
        device.uuid.clone_from(uuid);
    }
    let disguise = &mut device.disguise;
    disguise.memory_mib = args.claimed_memory_mib.or(disguise.memory_mib);
    disguise.power_percent = args.shown_power_percent.or(disguise.power_percent);
    disguise.clock_percent = args.real_clock_percent.or(disguise.clock_percent);
}

fn device_health(health: Health) -> DeviceHealth {
    match health {
        Health::Healthy => DeviceHealth::Healthy,
        Health::Lost => DeviceHealth::Lost,
        Health::EccFailed => DeviceHealth::EccFailed,
        Health::Hung => DeviceHealth::Hung,
    }
}

fn driver_health(driver: DriverState) -> DriverHealth {
    match driver {
        DriverState::Loaded => DriverHealth::Loaded,
        DriverState::NotLoaded => DriverHealth::NotLoaded,
        DriverState::Mismatch => DriverHealth::Mismatch,
    }
}

fn parse_processes(list: &str) -> Result<Vec<Process>, Failure> {
    let parse = |entry: &str| {
        let (pid, memory) = entry.split_once(':')?;
        Some(Process { pid: pid.parse().ok()?, memory_mib: memory.parse().ok()?, sm_percent: 0 })
    };
    list.split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
        .map(|entry| parse(entry).ok_or_else(|| Failure::Usage(format!("{entry:?} is not PID:MEMORY_MIB"))))
        .collect()
}

/// Prints the id of a load that begins.
fn load(args: &Load) -> Result<(), Failure> {
    let fleet = Fleet::open(&args.file.state);
    if let Some(id) = args.end {
        return Ok(fleet.end(id)?);
    }
    let pid = args.pid.ok_or_else(|| Failure::Usage("--pid is missing".to_owned()))?;
    let work = Work {
        pid,
        device: args.device,
        gpu_instance: args.gpu_instance,
        intensity: args.intensity,
        time_percent: args.time_percent,
        memory_mib: args.memory_mib,
    };
    let id = if args.watch { fleet.load_of_process(pid, work)? } else { fleet.load(work)? };
    println!("{id}");
    Ok(())
}

fn inject(args: &Inject) -> Result<(), Failure> {
    let fault = parse_fault(&args.fault, args.lasting.map(|s| s.saturating_mul(SECOND)))?;
    let fleet = Fleet::open(&args.file.state);
    let at_ns = fleet.now_ns()?.saturating_add(args.after.saturating_mul(SECOND));
    if args.after == 0 {
        return Ok(fleet.inject(args.device, fault)?);
    }
    Ok(fleet.script(vec![Event { at_ns, device: args.device, fault }])?)
}

fn parse_fault(text: &str, for_ns: Option<u64>) -> Result<Fault, Failure> {
    let (kind, value) = text.split_once('=').map_or((text, None), |(kind, value)| (kind, Some(value)));
    let wrong =
        |accepted: &str| Failure::Usage(format!("fault is {text:?}, accepted for {kind} is {accepted}"));
    let number = || value.and_then(|v| v.parse().ok()).ok_or_else(|| wrong(&format!("{kind}=NUMBER")));
    let rows =
        |uncorrectable, pending, failed| Fault::RowRemap { correctable: 0, uncorrectable, pending, failed };
    Ok(match kind {
        "xid" => Fault::Xid { code: number()? },
        "ecc-corrected" => Fault::Ecc { corrected: number()?, uncorrected: 0, sram: false },
        "ecc-uncorrected" => Fault::Ecc { corrected: 0, uncorrected: number()?, sram: false },
        "sram-uncorrected" => Fault::Ecc { corrected: 0, uncorrected: number()?, sram: true },
        "remapped" => rows(u32::try_from(number()?).map_err(|_| wrong("a 32-bit number"))?, false, false),
        "remap-pending" => rows(1, true, false),
        "remap-failed" => rows(0, false, true),
        "throttle" => {
            let accepted = "throttle=hw-thermal|sw-thermal|hw-power-brake|sw-power-cap:PERCENT";
            let parsed = value.and_then(|v| v.split_once(':')).and_then(|(reason, percent)| {
                let reason = match reason {
                    "hw-thermal" => ThrottleReason::HwThermal,
                    "sw-thermal" => ThrottleReason::SwThermal,
                    "hw-power-brake" => ThrottleReason::HwPowerBrake,
                    "sw-power-cap" => ThrottleReason::SwPowerCap,
                    _ => return None,
                };
                Some((reason, percent.parse().ok().filter(|p| *p <= 100)?))
            });
            let (reason, clock_percent) = parsed.ok_or_else(|| wrong(accepted))?;
            Fault::Throttle { reason, clock_percent, for_ns }
        }
        "hang" => Fault::Hang { for_ns },
        "lost" => Fault::Health { health: DeviceHealth::Lost },
        "recover" => Fault::Recover,
        "driver-reload" => Fault::DriverReload { for_ns: for_ns.unwrap_or(0) },
        "uuid" => Fault::Uuid { uuid: value.ok_or_else(|| wrong("uuid=UUID"))?.to_owned() },
        _ => {
            return Err(Failure::Usage(format!(
                "fault is {text:?}; see nvml-sim inject --help for those known"
            )));
        }
    })
}

fn timeline(args: &Timeline) -> Result<(), Failure> {
    let fleet = Fleet::open(&args.file.state);
    let mut added = Vec::new();
    if let Some(path) = &args.add {
        let operation = || format!("read {}", path.display());
        let text =
            std::fs::read(path).map_err(|source| Failure::System { operation: operation(), source })?;
        added = serde_json::from_slice::<Vec<Event>>(&text)
            .map_err(|source| Failure::Json { operation: operation(), source })?;
    }
    let state = fleet.update::<Failure>(|state, now| {
        if args.clear {
            state.events.clear();
        }
        for event in added {
            state.events.push(Event { at_ns: now.saturating_add(event.at_ns), ..event });
        }
        if let Some(seed) = args.generate {
            state.events.extend(script::generate(&Plan {
                seed,
                devices: u32::try_from(state.devices.len()).unwrap_or(u32::MAX),
                from_ns: now,
                length_ns: args.seconds.saturating_mul(SECOND),
                mean_gap_ns: args.mean_gap.saturating_mul(SECOND),
            }));
        }
        Ok(())
    })?;
    print_json(&state.events)
}

fn split(args: &Mig) -> Result<(), Failure> {
    let fleet = Fleet::open(&args.file.state);
    fleet.update::<Failure>(|state, now| {
        let machine = Machine::new(state.clone().into(), &[]);
        let missing = || Failure::Usage(format!("no device {}; see nvml-sim show", args.device));
        let moment = machine.device(args.device, now).ok_or_else(missing)?;
        if !moment.profile.mig_capable() {
            return Err(Failure::Usage(format!("{} has no MIG", moment.profile.product_name)));
        }
        let list = args.instances.as_deref().unwrap_or_default();
        let names: Vec<&str> = list.split(',').map(str::trim).filter(|n| !n.is_empty()).collect();
        let salt = format!("{}/{now}", moment.condition().uuid);
        let instances = mig::layout(moment.profile, &names, &salt)?;
        let fault = Fault::Mig { enabled: !args.disable, instances };
        state.events.push(Event { at_ns: now, device: Some(args.device), fault });
        Ok(())
    })?;
    print_table(&fleet)
}

fn clock(args: &ClockArgs) -> Result<(), Failure> {
    let fleet = Fleet::open(&args.file.state);
    if let Some(rate) = args.rate {
        fleet.set_rate(rate)?;
    }
    if let Some(seconds) = args.advance {
        fleet.advance(Duration::from_secs(seconds))?;
    }
    let state = source::load(&args.file.state)?;
    println!("{} ns, rate {}", state.clock.at(source::now_unix_ns()), state.clock.rate);
    Ok(())
}

fn older_library(args: &LibraryArgs) -> Result<(), Failure> {
    let error = |what: &'static str, path: &std::path::Path| {
        let operation = format!("{what} {}", path.display());
        move |source| Failure::System { operation, source }
    };
    let built = std::fs::read(&args.built).map_err(error("read", &args.built))?;
    let missing = library::missing(&args.driver_version)?;
    let copy = library::without(&built, &missing)?;
    std::fs::write(&args.output, copy).map_err(error("write", &args.output))?;
    println!("{} symbols left out", missing.len());
    Ok(())
}

fn device_plugin(args: DevicePlugin) -> Result<(), Failure> {
    let DevicePlugin { file, library, kubelet_dir, resource, container_dir } = args;
    let layout = Layout { library, state: file.state, container_dir };
    let config = plugin::Config { layout, kubelet_dir, resource };
    let error = |source| Failure::System { operation: "start runtime".to_owned(), source };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(error)?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let signalled = stop.clone();
        let mut terminate =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).map_err(error)?;
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            signalled.cancel();
        });
        plugin::run(config, stop).await.map_err(Failure::from)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_from_words() {
        let parse = |text| parse_fault(text, Some(5));
        assert!(matches!(parse("xid=79"), Ok(Fault::Xid { code: 79 })));
        assert!(matches!(parse("hang"), Ok(Fault::Hang { for_ns: Some(5) })));
        assert!(matches!(
            parse("throttle=hw-thermal:40"),
            Ok(Fault::Throttle { reason: ThrottleReason::HwThermal, clock_percent: 40, for_ns: Some(5) })
        ));
        for (text, message) in [
            ("xid", r#"fault is "xid", accepted for xid is xid=NUMBER"#),
            (
                "throttle=heat:1",
                r#"fault is "throttle=heat:1", accepted for throttle is throttle=hw-thermal|sw-thermal|hw-power-brake|sw-power-cap:PERCENT"#,
            ),
            ("fire", r#"fault is "fire"; see nvml-sim inject --help for those known"#),
        ] {
            assert_eq!(parse(text).expect_err(text).to_string(), message);
        }
    }
}
