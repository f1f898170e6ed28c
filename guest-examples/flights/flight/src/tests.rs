use crate::{Command, State};
use ebbtide::test::{Given, given};
use flights_events::Flight;
use flights_events::FlightEvent::{self, Arrived, Cancelled, Departed, Scheduled};
use serde_json::json;

fn flight() -> Flight {
    Flight { carrier: "UA".into(), origin: "EWR".into(), dest: "IAH".into(), hour: 5 }
}

fn scheduled() -> FlightEvent {
    Scheduled(flight())
}

fn departed() -> FlightEvent {
    Departed { flight: flight(), delay: 2 }
}

fn arrived() -> FlightEvent {
    Arrived { flight: flight(), delay: Some(11), air_time: Some(227) }
}

fn cancelled() -> FlightEvent {
    Cancelled { flight: flight() }
}

const DEPART: Command = Command::Depart { delay: 2 };
const ARRIVE: Command = Command::Arrive { delay: Some(11), air_time: Some(227) };

fn a_flight(events: impl IntoIterator<Item = FlightEvent>) -> Given<State> {
    given::<State>(events)
}

#[test]
fn a_flight_is_scheduled_departs_and_arrives() {
    a_flight([])
        .when(Command::Schedule(flight()))
        .then([scheduled()])
        .when(DEPART)
        .then([departed()])
        .when(ARRIVE)
        .then([arrived()]);
}

#[test]
fn a_diverted_flight_arrives_without_delay_and_air_time() {
    a_flight([scheduled(), departed()]).when_json("arrive", json!({})).then([Arrived {
        flight: flight(),
        delay: None,
        air_time: None,
    }]);
}

#[test]
fn nothing_can_be_reported_of_a_flight_that_is_not_scheduled() {
    for command in [DEPART, ARRIVE, Command::Cancel] {
        a_flight([]).when(command).then_refused("not_scheduled");
    }
}

#[test]
fn a_flight_is_scheduled_once() {
    for events in [vec![scheduled()], vec![scheduled(), departed()], vec![scheduled(), departed(), arrived()]]
    {
        a_flight(events).when(Command::Schedule(flight())).then_refused("already_scheduled");
    }
}

#[test]
fn a_flight_can_not_arrive_before_it_departed() {
    a_flight([scheduled()]).when(ARRIVE).then_refused("not_departed");
}

#[test]
fn a_flight_departs_once() {
    a_flight([scheduled(), departed()]).when(DEPART).then_refused("already_departed");
    a_flight([scheduled(), departed(), arrived()]).when(DEPART).then_refused("already_departed");
}

#[test]
fn a_flight_arrives_once() {
    a_flight([scheduled(), departed(), arrived()]).when(ARRIVE).then_refused("already_arrived");
}

#[test]
fn a_flight_can_not_be_cancelled_once_it_departed() {
    a_flight([scheduled()]).when(Command::Cancel).then([cancelled()]);
    a_flight([scheduled(), departed()]).when(Command::Cancel).then_refused("already_departed");
}

#[test]
fn a_cancelled_flight_stays_cancelled() {
    for command in [Command::Schedule(flight()), DEPART, ARRIVE, Command::Cancel] {
        a_flight([scheduled(), cancelled()]).when(command).then_refused("cancelled");
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    a_flight([]).when(Command::Schedule(Flight { hour: 24, ..flight() })).then_refused("no_such_hour");
    a_flight([scheduled(), departed()])
        .when(Command::Arrive { delay: None, air_time: Some(-1) })
        .then_refused("negative_air_time");
    a_flight([scheduled()]).when_json("depart", json!({ "delay": "late" })).then_refused("invalid_command");
}
