//! Jobs and cron jobs.

use serde_json::Value;

use super::{Errors, checks, pod, spec};
use crate::meta::Meta;
use crate::selector::Labels;
use crate::status::{FieldError, Path};
use crate::tree;

static EMPTY: Value = Value::Null;
/// A cron job's name, with the suffix of its jobs, must still fit a label.
const CRON_JOB_NAME_MAX: usize = 52;
const INDEXED_MAX: i64 = 100_000;

pub(super) fn job(object: &Value, errors: &mut Errors) {
    let spec_value = tree::at(object, "/spec").unwrap_or(&EMPTY);
    let path = spec();
    job_spec(errors, spec_value, &path);
    match tree::at(spec_value, "/selector") {
        None => errors.push(FieldError::required(&path.child("selector"), "")),
        Some(selector) => {
            checks::label_selector(errors, Some(selector), &path.child("selector"));
            let template = tree::at(spec_value, "/template").unwrap_or(&EMPTY);
            if Labels::from_selector(Some(selector)).is_ok_and(|labels| !labels.matches(template)) {
                let labels = tree::at(template, "/metadata/labels").cloned().unwrap_or_default();
                let path = path.child("template").child("metadata").child("labels");
                errors.push(FieldError::invalid(&path, labels, "`selector` does not match template `labels`"));
            }
        }
    }
}

/// A job without a selector of its own must select by its uid, and its pods carry its uid and name: labels of another job would
/// have the two count each other's pods.
pub(super) fn own_pods(object: &Value, errors: &mut Errors) {
    if tree::flag(object, "/spec/manualSelector") {
        return;
    }
    let path = spec().child("template").child("metadata").child("labels");
    let labels = tree::at(object, "/spec/template/metadata/labels").unwrap_or(&EMPTY);
    let (uid, name) = (Meta::of(object).uid(), Meta::of(object).name());
    let mut expected = serde_json::Map::new();
    for (prefix, key, want) in [
        ("batch.kubernetes.io/", "controller-uid", uid),
        ("", "controller-uid", uid),
        ("batch.kubernetes.io/", "job-name", name),
        ("", "job-name", name),
    ] {
        let key = format!("{prefix}{key}");
        match labels.get(&key).and_then(Value::as_str) {
            None => errors.push(FieldError::required(&path.key(&key), format!("must be '{want}'"))),
            Some(found) if found != want => {
                errors.push(FieldError::invalid(&path.key(&key), labels.clone(), format!("must be '{want}'")));
            }
            Some(_) => {}
        }
        expected.insert(key, want.into());
    }
    let selector = tree::at(object, "/spec/selector");
    let own = Value::from_iter([("metadata", Value::from_iter([("labels", Value::Object(expected))]))]);
    if let (Some(selector), Ok(wanted)) = (selector, Labels::from_selector(selector))
        && !wanted.matches(&own)
    {
        errors.push(FieldError::invalid(&spec().child("selector"), selector.clone(), "`selector` not auto-generated"));
    }
}

fn job_spec(errors: &mut Errors, spec: &Value, path: &Path) {
    let counts = [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
    ];
    for key in counts {
        checks::not_negative(errors, spec, key, path);
    }
    checks::choice(errors, spec, "completionMode", path, &["Indexed", "NonIndexed"], true);
    if tree::text(spec, "/completionMode") == "Indexed" {
        match tree::int(spec, "/completions") {
            None => {
                let text = "when completion mode is Indexed";
                errors.push(FieldError::required(&path.child("completions"), text));
            }
            Some(completions) if completions > INDEXED_MAX && tree::int(spec, "/parallelism").unwrap_or(0) > 10_000 => {
                let text = "must be less than or equal to 10000 when completions are over 100000";
                errors.push(FieldError::invalid(&path.child("parallelism"), completions, text));
            }
            Some(_) => {}
        }
    } else if let Some(limit) = tree::int(spec, "/backoffLimitPerIndex") {
        let text = "requires indexed completion mode";
        errors.push(FieldError::invalid(&path.child("backoffLimitPerIndex"), limit, text));
    }
    checks::choice(errors, spec, "podReplacementPolicy", path, &["Failed", "TerminatingOrFailed"], true);
    let template = path.child("template");
    pod::template(errors, tree::at(spec, "/template"), &template);
    restart_policy(errors, spec, &template);
}

fn restart_policy(errors: &mut Errors, spec: &Value, template: &Path) {
    let policy = tree::text(spec, "/template/spec/restartPolicy");
    let path = template.child("spec").child("restartPolicy");
    if !matches!(policy, "OnFailure" | "Never") {
        errors.push(FieldError::required(&path, "valid values: \"OnFailure\", \"Never\""));
    } else if policy != "Never" && tree::at(spec, "/podFailurePolicy").is_some() {
        let text = "only \"Never\" is supported when podFailurePolicy is specified";
        errors.push(FieldError::invalid(&path, policy, text));
    }
}

pub(super) fn job_step(new: &Value, old: &Value, errors: &mut Errors) {
    let path = spec();
    for key in ["selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"]
    {
        checks::immutable(errors, new, old, &format!("/spec/{key}"), &path.child(key));
    }
    // A suspended job that never started may still be told where to run.
    let may_place = tree::flag(old, "/spec/suspend") && tree::at(old, "/status/startTime").is_none();
    if !may_place {
        checks::immutable(errors, new, old, "/spec/template", &path.child("template"));
    }
    let (now, before) = (tree::int(new, "/spec/completions"), tree::int(old, "/spec/completions"));
    let elastic = tree::text(new, "/spec/completionMode") == "Indexed" && tree::int(new, "/spec/parallelism") == now;
    if now != before && !elastic {
        errors.push(FieldError::immutable(&path.child("completions"), now.map(Value::from).unwrap_or_default()));
    }
}

pub(super) fn cron_job(object: &Value, errors: &mut Errors) {
    let name = Meta::of(object).name();
    if name.len() > CRON_JOB_NAME_MAX {
        let text = format!("must be no more than {CRON_JOB_NAME_MAX} characters");
        errors.push(FieldError::invalid(&Path::new("metadata").child("name"), name, text));
    }
    let (spec_value, path) = (tree::at(object, "/spec").unwrap_or(&EMPTY), spec());
    if let Some(schedule) = checks::required(errors, spec_value, "schedule", &path) {
        self::schedule(errors, schedule, &path.child("schedule"));
    }
    for key in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        checks::not_negative(errors, spec_value, key, &path);
    }
    checks::choice(errors, spec_value, "concurrencyPolicy", &path, &["Allow", "Forbid", "Replace"], false);
    if let Some(zone) = tree::at(spec_value, "/timeZone").and_then(Value::as_str) {
        time_zone(errors, zone, &path.child("timeZone"));
    }
    let empty = Value::Null;
    let job = tree::at(spec_value, "/jobTemplate/spec").unwrap_or(&empty);
    let job_path = path.child("jobTemplate").child("spec");
    job_spec(errors, job, &job_path);
    if tree::flag(job, "/manualSelector") {
        let text = "`manualSelector` must not be true";
        errors.push(FieldError::invalid(&job_path.child("manualSelector"), true, text));
    }
}

fn time_zone(errors: &mut Errors, zone: &str, path: &Path) {
    if zone.is_empty() {
        errors.push(FieldError::invalid(path, zone, "timeZone must be nil or non-empty string"));
    } else if zone.eq_ignore_ascii_case("local") {
        errors.push(FieldError::invalid(
            path,
            zone,
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
        ));
    } else if !zone.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'_' | b'-' | b'+')) {
        errors.push(FieldError::invalid(path, zone, format!("unknown time zone {zone}")));
    }
}

/// Five cron fields, or one of the words that stand for them.
fn schedule(errors: &mut Errors, schedule: &str, path: &Path) {
    if schedule.contains("TZ") {
        let text = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        errors.push(FieldError::invalid(path, schedule, text));
        return;
    }
    let word =
        matches!(schedule, "@yearly" | "@annually" | "@monthly" | "@weekly" | "@daily" | "@midnight" | "@hourly");
    if word || schedule.starts_with("@every ") {
        return;
    }
    let fields: Vec<&str> = schedule.split_whitespace().collect();
    if fields.len() != 5 {
        let text = format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" "));
        errors.push(FieldError::invalid(path, schedule, text));
        return;
    }
    let bounds = [(0, 59, &[][..]), (0, 23, &[]), (1, 31, &[]), (1, 12, &MONTHS), (0, 7, &DAYS)];
    for (field, (low, high, names)) in fields.iter().zip(bounds) {
        if !field.split(',').all(|part| is_cron_part(part, low, high, names)) {
            errors.push(FieldError::invalid(
                path,
                schedule,
                format!("failed to parse int from {field}: invalid syntax"),
            ));
            return;
        }
    }
}

static MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
static DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// `*`, `5`, `1-5`, each with `/step`.
fn is_cron_part(part: &str, low: u32, high: u32, names: &[&str]) -> bool {
    let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
    if step.is_some_and(|step| step.parse::<u32>().map_or(true, |step| step == 0)) {
        return false;
    }
    let number = |text: &str| -> Option<u32> {
        let named = names.iter().position(|name| text.eq_ignore_ascii_case(name));
        match named {
            Some(at) => u32::try_from(at).ok().map(|at| at + low),
            None => text.parse().ok().filter(|number| (low..=high).contains(number)),
        }
    };
    if matches!(range, "*" | "?") {
        return true;
    }
    match range.split_once('-') {
        Some((from, to)) => number(from).zip(number(to)).is_some_and(|(from, to)| from <= to),
        None => number(range).is_some(),
    }
}
