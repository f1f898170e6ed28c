;; The smallest projection: a row a stream, which counts its events. Exports those of the world `projection`
;; (wit/functions.wit), by the names that the canonical ABI gives them in a core module.
(module
  (import "ebbtide:functions/rows@0.1.0" "add"
    (func $add (param i32 i32 i32 i32 i32 i32 i64)))
  (memory (export "memory") 2)
  (data (i32.const 16) "counts")
  (data (i32.const 24) "count")

  ;; As in counter.wat.
  (global $free (mut i32) (i32.const 4096))
  (func (export "cabi_realloc") (param $old i32) (param $old_size i32) (param $align i32) (param $size i32) (result i32)
    (local $start i32)
    (local.set $start
      (i32.and
        (i32.add (global.get $free) (i32.sub (local.get $align) (i32.const 1)))
        (i32.sub (i32.const 0) (local.get $align))))
    (global.set $free (i32.add (local.get $start) (local.get $size)))
    (block $fits
      (br_if $fits (i32.le_u (global.get $free) (i32.mul (memory.size) (i32.const 65536))))
      (br_if $fits
        (i32.ne (i32.const -1)
          (memory.grow
            (i32.add (i32.const 1)
              (i32.shr_u
                (i32.sub (global.get $free) (i32.mul (memory.size) (i32.const 65536)))
                (i32.const 16))))))
      unreachable)
    (memory.copy (local.get $start) (local.get $old) (local.get $old_size))
    (local.get $start))

  ;; A list of events, each of which takes 128 bytes and has its stream at byte 16.
  (func (export "ebbtide:functions/projections@0.1.0#apply") (param $event i32) (param $count i32) (result i32)
    (block $done
      (loop $next
        (br_if $done (i32.eqz (local.get $count)))
        (call $add
          (i32.const 16) (i32.const 6)
          (i32.load offset=16 (local.get $event)) (i32.load offset=20 (local.get $event))
          (i32.const 24) (i32.const 5)
          (i64.const 1))
        (local.set $event (i32.add (local.get $event) (i32.const 128)))
        (local.set $count (i32.sub (local.get $count) (i32.const 1)))
        (br $next)))
    (global.set $free (i32.const 4096))
    ;; `ok`.
    (i32.const 64)))
