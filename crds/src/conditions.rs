//! Condition types and reasons, each with the sentence that documents it.
//!
//! Invariant: code decides by condition type and status only; reasons and messages are for people and metrics.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// Conditions of a `Job`.
pub mod job {
    /// The order was checked and is offered to the market, or the reason why it cannot be.
    pub const ACCEPTED: &str = "Accepted";
    /// A provider holds capacity for the Job and the certificate was verified.
    pub const AWARDED: &str = "Awarded";
    /// The winner's cluster has created the workload's objects and they are ready.
    pub const PROVISIONED: &str = "Provisioned";
    /// The entry point runs.
    pub const RUNNING: &str = "Running";
    /// The Job has ended, for good.
    pub const FINISHED: &str = "Finished";
    /// Outputs and log are at home (False: they are not and will not be, or only the log is).
    pub const DELIVERED: &str = "Delivered";
}

/// Conditions of an `Award`, on both sides.
pub mod award {
    /// The winner's controller holds devices for the award (False: it cannot).
    pub const HELD: &str = "Held";
    /// The workload arrived at the winner and matches the order's commitment.
    pub const HANDED_OVER: &str = "HandedOver";
    /// The runtime's objects exist and are ready.
    pub const PROVISIONED: &str = "Provisioned";
    /// The entry point runs.
    pub const RUNNING: &str = "Running";
    /// The workload has ended.
    pub const FINISHED: &str = "Finished";
    /// Outputs and logs are stored at home, each checked by digest.
    pub const DELIVERED: &str = "Delivered";
    /// Nothing of the workload is left in the winner's cluster and its devices are free.
    pub const RELEASED: &str = "Released";
    /// At home: the devices that the winner says it holds are those that its certified bid is bound to (False: others).
    pub const DEVICES_AS_BID: &str = "DevicesAsBid";
    /// The node's devices became others while the award held them; it is never taken back.
    pub const DEVICES_CHANGED: &str = "DevicesChanged";
}

/// Conditions of a `Provision`.
pub mod provision {
    /// The Provision is well formed and its nodes report GPUs.
    pub const READY: &str = "Ready";
    /// The seat offers this Provision in its rounds.
    pub const ADVERTISED: &str = "Advertised";
    /// At least one award holds capacity of this Provision.
    pub const LEASED: &str = "Leased";
    /// Two nodes report a device of one UUID, which is sold on neither.
    pub const DUPLICATE_DEVICES: &str = "DuplicateDevices";
    /// Labels of GPU feature discovery say other than the agent of a node about its devices.
    pub const LABELS_CONTRADICT: &str = "LabelsContradict";
    /// Agents of nodes that the Provision selects are not heard any more, and nothing of these nodes is sold.
    pub const AGENTS_SILENT: &str = "AgentsSilent";
}

/// Conditions of a `Bid`.
pub mod bid {
    /// The bid won its order.
    pub const WON: &str = "Won";
    /// The bid lost; the reason says to what.
    pub const LOST: &str = "Lost";
}

/// Conditions of a `GpuNode`.
pub mod gpu_node {
    /// The agent reads the devices and all of them are usable.
    pub const READY: &str = "Ready";
    /// Every device was measured and is what it says.
    pub const PROBED: &str = "Probed";
    /// ResourceSlices of NVIDIA's DRA driver say other than NVML about the node's devices.
    pub const SLICES_CONTRADICT: &str = "SlicesContradict";
    /// What the devices do is signed, stored and delivered.
    pub const METERED: &str = "Metered";

    /// Reasons of `Metered`, one sentence each.
    pub mod reasons {
        /// Receipts are signed and stored.
        pub const METERED: &str = "Metered";
        /// Receipts cannot be stored: nothing accrues.
        pub const NOT_STORED: &str = "NotStored";
        /// The controller does not take the receipts of some chain.
        pub const NOT_DELIVERED: &str = "NotDelivered";
    }
}

/// Reasons of a device's probe that more than the agent has to know, one sentence each.
pub mod probe_reasons {
    /// Somebody uses the device whom kubelet does not know, so that it was not probed.
    pub const BUSY: &str = "Busy";
    /// A Pod has the device, so that it is not to be touched.
    pub const ALLOCATED: &str = "Allocated";
}

/// Reasons, one sentence each.
pub mod reasons {
    /// The object was checked and is in order.
    pub const VALID: &str = "Valid";
    /// A field cannot be accepted; the message names field, value and what is accepted.
    pub const INVALID_SPEC: &str = "InvalidSpec";
    /// Something that the object refers to (ConfigMap, Secret, key) is missing.
    pub const REFERENCE_NOT_FOUND: &str = "ReferenceNotFound";
    /// The user has suspended the object.
    pub const SUSPENDED: &str = "Suspended";
    /// Another controller manages the object (`spec.managedBy`).
    pub const MANAGED_ELSEWHERE: &str = "ManagedElsewhere";
    /// The market is asked for bids.
    pub const AUCTION_PENDING: &str = "AuctionPending";
    /// No provider could serve the order in the last round; the message counts the reasons.
    pub const NO_FEASIBLE_BID: &str = "NoFeasibleBid";
    /// The last round did not decide (too few seats answered); nothing was revealed.
    pub const ROUND_UNDECIDED: &str = "RoundUndecided";
    /// The time to look for a provider is over.
    pub const SEARCH_TIME_OVER: &str = "SearchTimeOver";
    /// The certificate was verified and the winner holds the devices.
    pub const CERTIFIED: &str = "Certified";
    /// The winner was asked to hold capacity.
    pub const RESERVING: &str = "Reserving";
    /// Devices are held.
    pub const DEVICES_HELD: &str = "DevicesHeld";
    /// The capacity that was bid is no longer free (a local Pod was faster).
    pub const CAPACITY_GONE: &str = "CapacityGone";
    /// The award's time was over before the workload arrived.
    pub const AWARD_EXPIRED: &str = "AwardExpired";
    /// The workload does not match the order's commitment.
    pub const COMMITMENT_MISMATCH: &str = "CommitmentMismatch";
    /// The objects are being created.
    pub const CREATING: &str = "Creating";
    /// The objects are ready.
    pub const CREATED: &str = "Created";
    /// The entry point was submitted and has not started yet.
    pub const SUBMITTED: &str = "Submitted";
    /// The entry point runs.
    pub const RUNNING: &str = "Running";
    /// The entry point runs again after a restart.
    pub const RESTARTED: &str = "Restarted";
    /// The entry point ended with success.
    pub const SUCCEEDED: &str = "Succeeded";
    /// The entry point ended with an error; the message holds the last log lines.
    pub const FAILED: &str = "Failed";
    /// The run deadline passed.
    pub const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";
    /// The user deleted or closed the Job.
    pub const CLOSED: &str = "Closed";
    /// The runtime's objects could not be created or were lost for good.
    pub const RUNTIME_ERROR: &str = "RuntimeError";
    /// The outputs arrived.
    pub const STORED: &str = "Stored";
    /// The outputs did not arrive in the time allowed and were dropped.
    pub const DELIVERY_TIMEOUT: &str = "DeliveryTimeout";
    /// The outputs are more than can be delivered; the message names the limit. The log was delivered.
    pub const OUTPUTS_TOO_LARGE: &str = "OutputsTooLarge";
    /// Nothing is left.
    pub const TORN_DOWN: &str = "TornDown";
    /// Nodes report GPUs that the Provision selects.
    pub const GPUS_REPORTED: &str = "GpusReported";
    /// No node reports a GPU that the Provision selects.
    pub const NO_GPUS: &str = "NoGpus";
    /// The cluster has no storage class of the name that the Provision gives.
    pub const STORAGE_CLASS_MISSING: &str = "StorageClassMissing";
    /// The cluster has no runtime class of the name that the Provision gives.
    pub const RUNTIME_CLASS_MISSING: &str = "RuntimeClassMissing";
    /// An object that the controller has to make is there already and belongs to somebody else.
    pub const NAME_TAKEN: &str = "NameTaken";
    /// The cluster's seat offers the Provision.
    pub const OFFERED: &str = "Offered";
    /// The cluster's seat does not take part at present; the message says why.
    pub const SEAT_NOT_ACTIVE: &str = "SeatNotActive";
    /// The winner's fingerprint opens what the certified bid is bound by.
    pub const AS_BID: &str = "AsBid";
    /// The winner's fingerprint does not open what the certified bid is bound by.
    pub const OTHER_DEVICES: &str = "OtherDevices";
    /// The fingerprint of the node that holds the devices changed.
    pub const FINGERPRINT_CHANGED: &str = "FingerprintChanged";
    /// Devices of different nodes have the same UUID; the message names them.
    pub const SAME_UUID: &str = "SameUuid";
    /// No UUID is reported twice.
    pub const UNIQUE: &str = "Unique";
    /// The message names each label that says other than the agent.
    pub const LABELS_DIFFER: &str = "LabelsDiffer";
    /// No label says other than the agent.
    pub const LABELS_AGREE: &str = "LabelsAgree";
    /// An agent has not written its GpuNode for a minute; the message names the nodes.
    pub const NOT_HEARD: &str = "NotHeard";
    /// Every agent writes its GpuNode.
    pub const HEARD: &str = "Heard";
    /// Awards hold capacity.
    pub const IN_USE: &str = "InUse";
    /// No award holds capacity.
    pub const IDLE: &str = "Idle";
}

/// Makes a condition; `observed` is the object's generation that it speaks of.
pub fn condition(
    type_: &str,
    status: bool,
    reason: &str,
    message: impl Into<String>,
    observed: Option<i64>,
    now: Timestamp,
) -> Condition {
    Condition {
        type_: type_.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message: message.into(),
        observed_generation: observed,
        last_transition_time: Time(now),
    }
}

/// Puts `new` into `list`: replaces the one of its type, and keeps the old transition time when the status is the same.
pub fn set(list: &mut Vec<Condition>, mut new: Condition) {
    match list.iter_mut().find(|old| old.type_ == new.type_) {
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time = old.last_transition_time.clone();
            }
            *old = new;
        }
        None => list.push(new),
    }
}

/// The condition of that type.
pub fn find<'a>(list: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    list.iter().find(|c| c.type_ == type_)
}

/// Whether the condition of that type is there and True.
pub fn is_true(list: &[Condition], type_: &str) -> bool {
    find(list, type_).is_some_and(|c| c.status == "True")
}

/// Whether the condition of that type is there and False.
pub fn is_false(list: &[Condition], type_: &str) -> bool {
    find(list, type_).is_some_and(|c| c.status == "False")
}

/// Whether two lists say the same, transition times aside.
pub fn same(a: &[Condition], b: &[Condition]) -> bool {
    let key = |c: &Condition| {
        (c.type_.clone(), c.status.clone(), c.reason.clone(), c.message.clone(), c.observed_generation)
    };
    let sorted = |list: &[Condition]| {
        let mut keys: Vec<_> = list.iter().map(key).collect();
        keys.sort();
        keys
    };
    sorted(a) == sorted(b)
}
