"""Reads every device through NVIDIA's own Python bindings, gpustat and nvitop, and prints what they say as JSON."""

import json

import pynvml as nv


def ask(call, *arguments):
    """The answer, or the name of NVML's error."""
    try:
        return call(*arguments)
    except nv.NVMLError as error:
        return type(error).__name__


def processes(device):
    found = ask(nv.nvmlDeviceGetComputeRunningProcesses, device)
    if isinstance(found, str):
        return found
    return sorted([p.pid, p.usedGpuMemory, p.gpuInstanceId] for p in found)


def fields(device, ids):
    return [[v.nvmlReturn, v.value.ullVal if v.nvmlReturn == 0 else 0] for v in nv.nvmlDeviceGetFieldValues(device, ids)]


def coder(call, device):
    """The utilisation alone, without the period over which it was sampled."""
    found = ask(call, device)
    return found if isinstance(found, str) else found[0]


def mig(device):
    """MIG devices as UUID, memory, SMs, instance and processes."""
    if ask(nv.nvmlDeviceGetMigMode, device) != [1, 1]:
        return []
    found = []
    for index in range(nv.nvmlDeviceGetMaxMigDeviceCount(device)):
        part = ask(nv.nvmlDeviceGetMigDeviceHandleByIndex, device, index)
        if isinstance(part, str):
            break
        attributes = nv.nvmlDeviceGetAttributes_v2(part)
        found.append({
            "uuid": nv.nvmlDeviceGetUUID(part),
            "memory": nv.nvmlDeviceGetMemoryInfo(part).total,
            "multiprocessors": attributes.multiprocessorCount,
            "instance": nv.nvmlDeviceGetGpuInstanceId(part),
            "processes": processes(part),
        })
    return found


def device(index):
    d = nv.nvmlDeviceGetHandleByIndex(index)
    memory = nv.nvmlDeviceGetMemoryInfo(d, version=nv.nvmlMemory_v2)
    utilisation = ask(nv.nvmlDeviceGetUtilizationRates, d)
    return {
        "name": nv.nvmlDeviceGetName(d),
        "uuid": nv.nvmlDeviceGetUUID(d),
        "pci": nv.nvmlDeviceGetPciInfo(d).busId,
        "memory": [memory.total, memory.reserved, memory.used, memory.free],
        "utilisation": utilisation if isinstance(utilisation, str) else [utilisation.gpu, utilisation.memory],
        "power": nv.nvmlDeviceGetPowerUsage(d),
        "powerLimit": nv.nvmlDeviceGetEnforcedPowerLimit(d),
        "energy": nv.nvmlDeviceGetTotalEnergyConsumption(d),
        "temperature": nv.nvmlDeviceGetTemperature(d, nv.NVML_TEMPERATURE_GPU),
        "smClock": nv.nvmlDeviceGetClockInfo(d, nv.NVML_CLOCK_SM),
        "memoryClock": nv.nvmlDeviceGetClockInfo(d, nv.NVML_CLOCK_MEM),
        "minor": nv.nvmlDeviceGetMinorNumber(d),
        "numaNode": ask(nv.nvmlDeviceGetNumaNodeId, d),
        "pcie": [
            nv.nvmlDeviceGetCurrPcieLinkGeneration(d),
            nv.nvmlDeviceGetCurrPcieLinkWidth(d),
            nv.nvmlDeviceGetMaxPcieLinkGeneration(d),
            nv.nvmlDeviceGetMaxPcieLinkWidth(d),
        ],
        "replays": nv.nvmlDeviceGetPcieReplayCounter(d),
        "coders": [coder(nv.nvmlDeviceGetEncoderUtilization, d), coder(nv.nvmlDeviceGetDecoderUtilization, d)],
        "reasons": nv.nvmlDeviceGetCurrentClocksEventReasons(d),
        "ecc": [nv.nvmlDeviceGetTotalEccErrors(d, kind, nv.NVML_VOLATILE_ECC) for kind in (0, 1)],
        "rows": ask(nv.nvmlDeviceGetRemappedRows, d),
        "fields": fields(d, [nv.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, nv.NVML_FI_DEV_MEMORY_TEMP]),
        "processes": processes(d),
        "mig": mig(d),
    }


def watched():
    """gpustat's view: index, UUID, temperature, utilisation, power in watts, memory in MiB."""
    # It replaces functions of the bindings, which are to be read as they are first.
    import gpustat

    return [
        [g.index, g.uuid, g.temperature, g.utilization, g.power_draw, g.memory_used, g.memory_total]
        for g in gpustat.GPUStatCollection.new_query()
    ]


def topped():
    """nvitop's view: UUID, temperature, utilisation, power in milliwatts, memory in bytes; "N/A" where there is none."""
    from nvitop import Device

    return [
        [d.uuid(), d.temperature(), d.gpu_utilization(), d.power_usage(), d.memory_used(), d.memory_total()]
        for d in Device.all()
    ]


nv.nvmlInit()
count = nv.nvmlDeviceGetCount()
answer = {"driver": nv.nvmlSystemGetDriverVersion(), "cuda": nv.nvmlSystemGetCudaDriverVersion(), "devices": [device(i) for i in range(count)]}
nv.nvmlShutdown()
answer["gpustat"] = watched()
answer["nvitop"] = topped()
print(json.dumps(answer))
