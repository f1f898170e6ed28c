//! Programs written to do harm, in WebAssembly text: whatever they try ends with an error that says which limit they
//! met, in bounded time, and leaves nothing behind.

use super::*;
use std::time::Instant;

const CPU: Duration = Duration::from_millis(100);
const MEMORY: u64 = 4 << 20;

/// A program around some text.
fn program(body: &str) -> Bytes {
    let text = format!(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "random_get" (func $random_get (param i32 i32) (result i32)))
            (memory (export "memory") 1)
            {body})"#
    );
    wat::parse_str(text).unwrap().into()
}

/// What becomes of a command that the program decides, beside a neighbour that is well before and after.
async fn harm(body: &str) -> CallError {
    let bench = bench();
    let neighbour = bench.commands(|_| {}).await;
    let mut aggregate = open(&neighbour, "a").await.unwrap();
    assert_eq!(decide(&mut aggregate, "count", "").await.unwrap(), "a=0");
    let before = bench.engine.memory_bytes();

    let module = bench.engine.compile(program(body), ModuleKind::Command).await.unwrap();
    let mut spec = spec(module);
    spec.limits.cpu = CPU;
    spec.limits.memory_bytes = MEMORY;
    let module = bench.engine.commands(spec).unwrap();
    let began = Instant::now();
    let error = outcome(&module, "anything", "{}").await.unwrap_err();
    // A hundred times what it may compute: for machines that do other things meanwhile.
    assert!(began.elapsed() < CPU * 100, "it took {:?}", began.elapsed());

    assert_eq!(decide(&mut aggregate, "count", "").await.unwrap(), "a=0", "others go on");
    drop(module);
    assert_eq!(bench.engine.memory_bytes(), before, "nothing is left of it");
    error
}

#[tokio::test]
async fn a_start_function_that_never_ends_is_out_of_cpu() {
    let error = harm(r#"(func $spin (loop br 0)) (start $spin) (func (export "_start"))"#).await;
    assert_eq!(error, CallError::OutOfCpu { limit: CPU });
}

#[tokio::test]
async fn a_storm_of_calls_to_the_host_is_out_of_cpu() {
    for call in [
        "(call $random_get (i32.const 0) (i32.const 65536))",
        "(call $random_get (i32.const 0) (i32.const 1))",
        "(call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 16))",
        // One empty line after another, of which a log takes none.
        "(call $fd_write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 16))",
    ] {
        let error = harm(&format!(
            r#"(data (i32.const 0) "\40\00\00\00\01\00\00\00") (data (i32.const 64) "\n")
               (func (export "_start") (loop (drop {call}) br 0))"#
        ))
        .await;
        assert_eq!(error, CallError::OutOfCpu { limit: CPU }, "{call}");
    }
}

#[tokio::test]
async fn memory_that_grows_past_the_limit_ends_the_call() {
    for pages in [1, 64, 65_535] {
        let error = harm(&format!(
            r#"(func (export "_start") (loop (drop (memory.grow (i32.const {pages}))) br 0))"#
        ))
        .await;
        assert!(
            matches!(error, CallError::OutOfMemory { limit_bytes: MEMORY } | CallError::OutOfCpu { .. }),
            "{pages}: {error:?}"
        );
    }
}

#[tokio::test]
async fn tables_count_as_memory_and_have_a_bound_of_their_own() {
    let grows = r#"(table 1 funcref)
        (func (export "_start") (loop (drop (table.grow 0 (ref.null func) (i32.const 100))) br 0))"#;
    let error = harm(grows).await;
    assert!(matches!(error, CallError::OutOfCpu { .. } | CallError::OutOfMemory { .. }), "{error:?}");
    let large = program(r#"(table 10000000 funcref) (func (export "_start"))"#);
    let bench = bench();
    match bench.engine.compile(large, ModuleKind::Command).await {
        Err(_) => {}
        Ok(module) => {
            let module = bench.engine.commands(spec(module)).unwrap();
            assert!(outcome(&module, "anything", "{}").await.is_err());
        }
    }
}

#[tokio::test]
async fn recursion_without_end_overflows_the_guests_stack_and_not_the_hosts() {
    let error = harm(r#"(func $deep (call $deep) (call $deep)) (func (export "_start") (call $deep))"#).await;
    assert_eq!(error, CallError::Trapped("it overflowed its stack".into()));
}

#[tokio::test]
async fn lies_about_lengths_are_the_guests_own_problem() {
    for (base, length) in [(0_u32, u32::MAX), (u32::MAX, 1), (65_535, 2), (0, 65_537)] {
        let (base, length) = (base as i32, length as i32);
        let lie = format!(
            r#"(func (export "_start")
                (i32.store (i32.const 0) (i32.const {base}))
                (i32.store (i32.const 4) (i32.const {length}))
                (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16)))
                (drop (call $random_get (i32.const {base}) (i32.const {length}))))"#
        );
        let error = harm(&lie).await;
        assert!(
            matches!(error, CallError::Trapped(_) | CallError::BadAnswer(_) | CallError::OutputTooLarge(_)),
            "{error:?}"
        );
    }
}
