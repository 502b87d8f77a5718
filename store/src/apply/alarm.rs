//! Alarms: replicated, so that every member refuses the same requests, from the same entry on.

use bytes::Bytes;
use pintle_proto::etcdserverpb::request_op::Request;
use pintle_proto::etcdserverpb::{AlarmMember, AlarmResponse, AlarmType, RequestOp, TxnRequest};
use pintle_proto::store_v1::command::Operation;
use pintle_proto::store_v1::failure::Reason;
use pintle_proto::store_v1::reply::Outcome;
use pintle_proto::store_v1::{Alarm, SetAlarm};
use prost::Message;

use super::overlay::Overlay;
use super::{Refusal, header};
use crate::mvcc::view::Source;

/// What an alarm forbids: without space whatever makes the data grow, over damaged data every change.
pub(super) fn refuses(alarms: &[Alarm], operation: &Operation) -> Option<Refusal> {
    let raised = |kind: AlarmType| alarms.iter().any(|alarm| alarm.kind == i32::from(kind));
    let changes = match operation {
        Operation::Put(_)
        | Operation::DeleteRange(_)
        | Operation::Txn(_)
        | Operation::Compact(_)
        | Operation::LeaseGrant(_)
        | Operation::LeaseRevoke(_)
        | Operation::LeaseExpire(_) => true,
        Operation::LeaseRenew(_)
        | Operation::SetAlarm(_)
        | Operation::Publish(_)
        | Operation::ExpectVoter(_)
        | Operation::Auth(_)
        | Operation::Quota(_)
        | Operation::QuotaCount(_) => false,
    };
    if changes && raised(AlarmType::Corrupt) {
        return Some(Reason::Corrupt.into());
    }
    if !raised(AlarmType::Nospace) {
        return None; // transactions are taken apart only while it matters
    }
    let grows = match operation {
        Operation::Put(_) | Operation::LeaseGrant(_) => true,
        Operation::Txn(request) => TxnRequest::decode(request.clone()).is_ok_and(|request| puts(&request)),
        _ => false,
    };
    grows.then(|| Reason::NoSpace.into())
}

/// Whether a transaction puts anything, on whatever branch.
fn puts(request: &TxnRequest) -> bool {
    let any = |operation: &RequestOp| match &operation.request {
        Some(Request::RequestPut(_)) => true,
        Some(Request::RequestTxn(nested)) => puts(nested),
        Some(Request::RequestRange(_) | Request::RequestDeleteRange(_)) | None => false,
    };
    request.success.iter().chain(&request.failure).any(any)
}

/// Raises or clears an alarm; the answer names it if it is raised now, or was until now.
pub(super) fn set(overlay: &mut Overlay<'_>, set: &SetAlarm) -> Outcome {
    let alarm = set.alarm.unwrap_or_default();
    let known = AlarmType::try_from(alarm.kind).is_ok_and(|kind| kind != AlarmType::None);
    let place = overlay.alarms().binary_search_by_key(&order(&alarm), order);
    let named = match (set.active, place) {
        _ if !known => false,
        (true, Ok(_)) => true,
        (true, Err(place)) => {
            overlay.change_alarms(|alarms| alarms.insert(place, alarm));
            true
        }
        (false, Ok(place)) => {
            overlay.change_alarms(|alarms| {
                alarms.remove(place);
            });
            true
        }
        (false, Err(_)) => false,
    };
    let alarms = if named { vec![member(&alarm)] } else { Vec::new() };
    let answer = AlarmResponse { header: header(overlay.revision()), alarms };
    Outcome::Answer(Bytes::from(answer.encode_to_vec()))
}

fn order(alarm: &Alarm) -> (i32, u64) {
    (alarm.kind, alarm.member)
}

pub(crate) fn member(alarm: &Alarm) -> AlarmMember {
    AlarmMember { member_id: alarm.member, alarm: alarm.kind }
}
