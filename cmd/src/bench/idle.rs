//! `bench idle`: what a cluster costs while nothing is asked of it, and whether it keeps its leader meanwhile.

use std::time::Duration;

use anyhow::{Result, bail};
use pintle_base::clock;
use serde_json::json;

use super::{Common, Target, usage, write_json};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// How long to look
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    seconds: u64,
}

/// How often the term is looked at.
const LOOK: Duration = Duration::from_secs(1);

pub async fn run(args: Args) -> Result<()> {
    let target = Target::of(&args.common.name)?;
    target.within(measure(&target, &args)).await
}

async fn measure(target: &Target, args: &Args) -> Result<()> {
    eprintln!("looking for {} s ...", args.seconds);
    let (term, before, started) = (target.term().await?, usage::read(target), clock::now());
    let (mut last, mut peak) = (term, before.clone());
    while started.elapsed() < Duration::from_secs(args.seconds) {
        clock::sleep(LOOK).await;
        last = target.term().await?;
        for usage in usage::read(target) {
            if let Some(highest) = peak.iter_mut().find(|other| other.name == usage.name) {
                highest.memory_bytes = highest.memory_bytes.max(usage.memory_bytes);
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let mut after = usage::read(target);
    for usage in &mut after {
        if let Some(highest) = peak.iter().find(|other| other.name == usage.name) {
            usage.memory_bytes = highest.memory_bytes;
        }
    }
    print!("{}", usage::lines(&before, &after, seconds));
    println!("{:<34} {}", "elections", last - term);
    let figures = json!({
        "seconds": seconds, "term_before": term, "term_after": last,
        "processes": usage::figures(&before, &after, seconds),
    });
    write_json(args.common.json.as_deref(), &figures)?;
    if last != term {
        bail!("the term moved from {term} to {last} with nothing wrong: see the servers' logs for why");
    }
    Ok(())
}
