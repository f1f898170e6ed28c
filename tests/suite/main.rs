//! What Ebbtide promises, shown on the real binary over real sockets with real modules. A module for each part of the
//! contract; a test's name is the rule.

mod apps;
mod architecture;
mod bad_input;
mod bench;
mod cli;
mod commands;
mod crash;
mod deploy;
mod dev;
mod effects;
mod faults;
mod flights;
mod functions;
mod graceful;
mod hostile;
mod idle;
mod kafka;
mod languages;
mod own_app;
mod page;
mod peer;
mod projections;
mod raw;
mod reads;
mod replay;
mod scaling;
mod secrets;
mod shares;
mod siege;
mod storms;
mod support;
mod tokens;
mod traces;
mod usage;
