//! What `/tmp` promises.

use super::*;
use crate::budget::Budget;

const FILE: Opening = Opening { create: true, exclusive: false, truncate: false, folder: false, write: true };

fn tmp(limit: u64) -> (Tmp, Arc<Budget>) {
    let budget = Budget::new(1 << 30);
    (Tmp::new(limit, Charge::new(budget.clone())), budget)
}

fn err<T>(result: Result<T>) -> ErrorCode {
    result.err().expect("an error")
}

#[test]
fn what_is_written_is_read_and_holes_are_zero() {
    let (tmp, budget) = tmp(1 << 20);
    let file = tmp.root().open("a", FILE).unwrap();
    file.write(Some(10_000), b"behind a hole").unwrap();
    file.write(None, b", and more").unwrap();
    assert_eq!(file.read(9_998, 100).unwrap(), b"\0\0behind a hole, and more");
    assert_eq!(file.read(10_023, 100).unwrap(), b"");
    assert_eq!(file.stat().unwrap().size, 10_023);
    assert_eq!(budget.used(), ENTRY + PAGE, "a hole takes nothing");
    file.set_size(10_006).unwrap();
    file.set_size(10_010).unwrap();
    assert_eq!(file.read(10_000, 100).unwrap(), b"behind\0\0\0\0", "what was cut off does not come back");
    let pages: Vec<u8> = (0..20_000_u32).map(|n| n as u8).collect();
    file.write(Some(1), &pages).unwrap();
    assert_eq!(file.read(1, 30_000).unwrap(), pages);
}

#[test]
fn no_more_is_taken_than_was_granted_and_all_of_it_comes_back() {
    let (tmp, budget) = tmp(4 * PAGE + 3 * ENTRY);
    let root = tmp.root();
    let file = root.open("a", FILE).unwrap();
    file.write(None, &[7; 4 * PAGE as usize]).unwrap();
    assert_eq!(err(file.write(None, b"x")), ErrorCode::InsufficientSpace);
    assert_eq!(err(file.write(Some(u64::MAX), b"x")), ErrorCode::InsufficientSpace);
    assert_eq!(err(file.set_size(1 << 40)), ErrorCode::InsufficientSpace);
    file.write(Some(5), b"in place").unwrap();
    root.make_folder("b").unwrap();
    root.open("c", FILE).unwrap();
    assert_eq!(err(root.open("d", FILE)), ErrorCode::InsufficientSpace, "a name takes space, too");
    root.remove_file("a").unwrap();
    assert_eq!(err(root.open("a", Opening::default())), ErrorCode::NoEntry);
    assert_eq!(file.read(5, 8).unwrap(), b"in place", "it is there for who has it open");
    assert_eq!(
        err(root.open("d", FILE).and_then(|d| d.write(None, &[0; 8192]))),
        ErrorCode::InsufficientSpace
    );
    drop(file);
    root.open("d", FILE).unwrap().write(None, &[0; 4 * PAGE as usize]).unwrap();
    drop((root, tmp));
    assert_eq!(budget.used(), 0);
}

#[test]
fn the_nodes_memory_is_a_limit_as_well() {
    let budget = Budget::new(2 * PAGE);
    let tmp = Tmp::new(1 << 20, Charge::new(budget));
    let file = tmp.root().open("a", FILE).unwrap();
    assert_eq!(err(file.write(None, &[0; 2 * PAGE as usize])), ErrorCode::InsufficientSpace);
    file.write(None, &[0; PAGE as usize]).unwrap();
}

#[test]
fn no_path_leads_out() {
    let (tmp, _) = tmp(1 << 20);
    let root = tmp.root();
    root.make_folder("a").unwrap();
    root.make_folder("a/b").unwrap();
    let inner = root.open("a/b", Opening { folder: true, ..Opening::default() }).unwrap();
    for path in ["..", "../x", "./../../x", "c/../../x", "/x"] {
        let error = err(inner.open(path, FILE));
        assert!(matches!(error, ErrorCode::NotPermitted | ErrorCode::NoEntry), "{path}: {error:?}");
    }
    root.open("a/b/../x", FILE).unwrap();
    assert_eq!(root.next_name(None).unwrap(), Some(("a".to_owned(), true)));
    assert_eq!(root.next_name(Some("a")).unwrap(), None);
    let inner = root.open("a", Opening::default()).unwrap();
    assert_eq!(inner.next_name(None).unwrap(), Some(("b".to_owned(), true)));
    assert_eq!(inner.next_name(Some("b")).unwrap(), Some(("x".to_owned(), false)));
    // Names that came or went meanwhile do not matter.
    assert_eq!(inner.next_name(Some("c")).unwrap(), Some(("x".to_owned(), false)));
    assert_eq!(err(root.open(&"n".repeat(256), FILE)), ErrorCode::NameTooLong);
    assert_eq!(err(root.open(&"a/../".repeat(1000), FILE)), ErrorCode::NameTooLong);
    assert_eq!(err(root.open("", FILE)), ErrorCode::NoEntry);
}

#[test]
fn entries_are_renamed_over_what_they_can_replace_and_never_into_themselves() {
    let (tmp, budget) = tmp(1 << 20);
    let root = tmp.root();
    for folder in ["a", "a/b", "empty", "full"] {
        root.make_folder(folder).unwrap();
    }
    root.open("full/x", FILE).unwrap().write(None, b"x").unwrap();
    root.open("y", FILE).unwrap().write(None, b"y").unwrap();
    assert_eq!(err(root.rename("a", &root, "a/b/c")), ErrorCode::Invalid);
    assert_eq!(err(root.rename("a", &root, "full")), ErrorCode::NotEmpty);
    assert_eq!(err(root.rename("a", &root, "y")), ErrorCode::NotDirectory);
    assert_eq!(err(root.rename("y", &root, "a")), ErrorCode::IsDirectory);
    assert_eq!(err(root.rename("none", &root, "a")), ErrorCode::NoEntry);
    let before = budget.used();
    root.rename("y", &root, "full/x").unwrap();
    assert_eq!(budget.used(), before - ENTRY - PAGE, "what was replaced is gone");
    root.rename("full", &root, "empty").unwrap();
    assert_eq!(root.open("empty/x", Opening::default()).unwrap().read(0, 9).unwrap(), b"y");
    root.rename("empty/x", &root, "empty/x").unwrap();
}

#[test]
fn only_what_is_empty_is_removed_and_a_folder_that_is_gone_takes_nothing_new() {
    let (tmp, _) = tmp(1 << 20);
    let root = tmp.root();
    root.make_folder("a").unwrap();
    root.open("a/x", FILE).unwrap();
    assert_eq!(err(root.remove_folder("a")), ErrorCode::NotEmpty);
    assert_eq!(err(root.remove_file("a")), ErrorCode::IsDirectory);
    assert_eq!(err(root.remove_folder("a/x")), ErrorCode::NotDirectory);
    assert_eq!(err(root.remove_folder(".")), ErrorCode::NotEmpty);
    root.remove_file("a/x").unwrap();
    let folder = root.open("a", Opening::default()).unwrap();
    root.remove_folder("a/").unwrap();
    assert_eq!(err(folder.open("x", FILE)), ErrorCode::NoEntry);
    assert_eq!(err(root.remove_folder(".")), ErrorCode::Invalid);
}

#[test]
fn who_opened_to_read_writes_nothing() {
    let (tmp, _) = tmp(1 << 20);
    let root = tmp.root();
    root.open("a", FILE).unwrap().write(None, b"a").unwrap();
    let file = root.open("a", Opening::default()).unwrap();
    assert_eq!(err(file.write(None, b"b")), ErrorCode::NotPermitted);
    assert_eq!(err(file.set_size(0)), ErrorCode::NotPermitted);
    assert_eq!(err(root.open("a", Opening { exclusive: true, ..FILE })), ErrorCode::Exist);
    let emptied = root.open("a", Opening { truncate: true, ..FILE }).unwrap();
    assert_eq!(emptied.stat().unwrap().size, 0);
}
