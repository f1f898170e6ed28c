//! Projections: from events to rows.
