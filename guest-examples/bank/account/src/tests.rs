use crate::{Account, Command};
use bank_events::AccountEvent::{self, Closed, Deposited, Opened, Withdrawn};
use ebbtide::test::{Given, given};
use serde_json::json;
use std::num::NonZeroU64;

fn opened() -> AccountEvent {
    Opened { owner: "Ann".into() }
}

fn an_account_with(cents: u64) -> Given<Account> {
    given::<Account>([opened(), Deposited { amount: cents }])
}

fn open() -> Command {
    Command::Open { owner: "Ann".into() }
}

fn deposit(cents: u64) -> Command {
    Command::Deposit { amount: NonZeroU64::new(cents).unwrap() }
}

fn withdraw(cents: u64) -> Command {
    Command::Withdraw { amount: NonZeroU64::new(cents).unwrap() }
}

#[test]
fn what_comes_in_can_go_out() {
    given::<Account>([])
        .when(open())
        .then([opened()])
        .when(deposit(50))
        .then([Deposited { amount: 50 }])
        .when(withdraw(50))
        .then([Withdrawn { amount: 50 }])
        .when(Command::Close)
        .then([Closed]);
}

#[test]
fn a_withdrawal_larger_than_the_balance_is_refused() {
    an_account_with(50)
        .when(withdraw(80))
        .then_refused("insufficient_funds")
        .message("30 cents short of 80")
        .detail("short_by", 30)
        .detail("balance", 50);
}

#[test]
fn an_account_is_opened_once() {
    an_account_with(1).when(open()).then_refused("already_open");
}

#[test]
fn an_account_needs_an_owner() {
    given::<Account>([]).when(Command::Open { owner: " ".into() }).then_refused("owner_missing");
}

#[test]
fn nothing_can_be_done_with_an_account_that_was_never_opened() {
    for command in [deposit(1), withdraw(1), Command::Close] {
        given::<Account>([]).when(command).then_refused("not_open");
    }
}

#[test]
fn only_an_empty_account_can_be_closed() {
    an_account_with(1)
        .when(Command::Close)
        .then_refused("account_not_empty")
        .detail("balance", 1)
        .when(withdraw(1))
        .then([Withdrawn { amount: 1 }])
        .when(Command::Close)
        .then([Closed]);
}

#[test]
fn a_closed_account_stays_closed() {
    for command in [open(), deposit(1), withdraw(1), Command::Close] {
        given::<Account>([opened(), Closed]).when(command).then_refused("closed");
    }
}

#[test]
fn amounts_are_whole_cents_above_zero() {
    for amount in [json!(0), json!(-1), json!(0.5), json!("5"), json!(null)] {
        an_account_with(50).when_json("deposit", json!({ "amount": amount })).then_refused("invalid_command");
    }
}

#[test]
fn an_account_holds_no_more_than_a_read_model_can_show() {
    an_account_with(i64::MAX as u64).when(deposit(1)).then_refused("account_full");
}
