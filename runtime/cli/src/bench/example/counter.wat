;; The smallest command module: every command is an event `Counted` with the command's data, and nothing is folded. So
;; what is measured around it is the platform, not a module. Its exports are those of the world `command`
;; (wit/functions.wit), by the names that the canonical ABI gives them in a core module.
(module
  (import "[export]ebbtide:functions/aggregates@0.1.0" "[resource-new]aggregate"
    (func $new (param i32) (result i32)))
  (memory (export "memory") 2)
  (data (i32.const 16) "Counted")

  ;; Arguments are put behind one another from 4096 on; each call begins there again, since it keeps nothing.
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
  (func $done (global.set $free (i32.const 4096)))

  (func (export "ebbtide:functions/aggregates@0.1.0#[constructor]aggregate") (param i32 i32) (result i32)
    (call $done)
    (call $new (i32.const 1)))
  (func (export "ebbtide:functions/aggregates@0.1.0#[dtor]aggregate") (param i32))
  ;; `ok`, with an aggregate that has nothing to restore.
  (func (export "ebbtide:functions/aggregates@0.1.0#[static]aggregate.restore") (param i32 i32 i32 i32) (result i32)
    (call $done)
    (i32.store8 (i32.const 32) (i32.const 0))
    (i32.store (i32.const 36) (call $new (i32.const 1)))
    (i32.const 32))
  (func (export "ebbtide:functions/aggregates@0.1.0#[method]aggregate.apply") (param i32 i32 i32)
    (call $done))
  ;; The command comes field by field: self, id, name, data, actor, time, correlation id.
  (func (export "ebbtide:functions/aggregates@0.1.0#[method]aggregate.decide")
    (param i32 i64 i64 i32 i32) (param $data i32) (param $length i32) (param i32 i32 i64 i32 i32) (result i32)
    ;; `ok`, and a list of one event.
    (i32.store8 (i32.const 64) (i32.const 0))
    (i32.store (i32.const 68) (i32.const 96))
    (i32.store (i32.const 72) (i32.const 1))
    (i32.store (i32.const 96) (i32.const 16))
    (i32.store (i32.const 100) (i32.const 7))
    (i32.store (i32.const 104) (local.get $data))
    (i32.store (i32.const 108) (local.get $length))
    (call $done)
    (i32.const 64))
  ;; None: it is cheap to fold again.
  (func (export "ebbtide:functions/aggregates@0.1.0#[method]aggregate.snapshot") (param i32) (result i32)
    (i32.const 128)))
