//! Runs many seeds: `ebb-sim COUNT [START]`. Ends with 1 if any breaks a promise.
#![expect(clippy::print_stdout, reason = "a program")]

use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u64>());
    let (Some(Ok(count)), start) = (arguments.next(), arguments.next()) else {
        println!("usage: ebb-sim COUNT [START]: runs COUNT seeds from START (0) on");
        return ExitCode::from(2);
    };
    let start = start.and_then(Result::ok).unwrap_or(0);
    let began = Instant::now();
    let total = ebb_sim::run_all(start..start + count, |seed, violations| {
        for violation in violations {
            println!("seed {seed}: {violation}");
        }
    });
    let seconds = began.elapsed().as_secs_f64();
    println!("{count} seeds from {start} in {seconds:.0} s; {} broke a promise", total.broken.len());
    for (what, times) in total.stats {
        println!("{times:>12}  {what}");
    }
    ExitCode::from(u8::from(!total.broken.is_empty()))
}
