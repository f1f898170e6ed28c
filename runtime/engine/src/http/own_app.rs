//! `commands` and `models` of our own package: what a guest may ask of its own app. A guest waits for each, and asks
//! for one at a time; its call's wall clock runs on. What is asked for runs in a task of its own, so that neither its
//! computing nor its turns at the processors are the guest's. Meanwhile the call gives up its place of the node: what
//! it waits for needs one too, and a node full of calls that wait for places would wait for ever.

use super::state::State;
use crate::bindings::own_app::{
    AcceptedOut, CommandError, CommandSent, FoundOut, PageOut, QueryIn, ReadError,
};
use crate::function::NodePlace;
use crate::usage::Observer;
use ebb_domain::event::Position;
use ebb_domain::port::guest::CallError;
use ebb_domain::port::own_app::{NotDone, NotDoneKind, OwnApp, OwnCommand};
use ebb_domain::trace::Trace;
use std::sync::Arc;
use tokio::task::JoinHandle;
use wasmtime::component::Linker;
use wasmtime::{Result, StoreContextMut};

/// The call that runs: its app, and its place of the node.
#[derive(Clone)]
pub(super) struct Calling {
    pub(super) app: Arc<dyn OwnApp>,
    pub(super) place: Arc<NodePlace>,
    /// The span that the call is.
    pub(super) span: Option<Trace>,
    pub(super) observer: Option<Arc<dyn Observer>>,
}

impl Calling {
    /// The span that a command of the call will be, or the call's caller's where nobody observes.
    fn begin_span(&self) -> Option<Trace> {
        match &self.observer {
            Some(observer) => Some(observer.begin(self.span.as_ref())),
            None => self.span.clone(),
        }
    }

    /// What comes of work on the app. Dropped in the middle, it stops the work.
    async fn ask<T: Send + 'static>(self, work: impl Future<Output = T> + Send + 'static) -> Result<T> {
        let asked = async move {
            let mut task = AbortOnDrop(tokio::spawn(work));
            (&mut task.0).await
        };
        let answer = self.place.without(asked).await;
        answer
            .map_err(|error| CallError::Failed(format!("what the function asked for ended: {error}")).into())
    }
}

struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a function may be granted of its app.
#[derive(Clone, Copy)]
enum Grant {
    Commands,
    Models,
}

/// Who calls, once it is clear that the manifest grants what is asked for.
fn granted(
    context: &StoreContextMut<'_, State>,
    grant: Grant,
    name: &str,
) -> Result<Result<Calling, NotDone>> {
    let state = context.data();
    let (key, is_granted) = match grant {
        Grant::Commands => ("commands", state.capabilities().may_send_to(name)),
        Grant::Models => ("models", state.capabilities().may_read(name)),
    };
    if !is_granted {
        let name: String = name.chars().take(80).collect();
        let message = format!(
            "the function is not granted `{name}`; `capabilities.{key}` in the manifest lists what is"
        );
        return Ok(Err(NotDone::new(NotDoneKind::Denied, "not_granted", message)));
    }
    match state.calling() {
        Some(calling) => Ok(Ok(calling.clone())),
        None => Err(CallError::Trapped(format!("it used `{key}` before it was called")).into()),
    }
}

/// The interface `commands`.
pub(super) fn add_commands(linker: &mut Linker<State>) -> Result<()> {
    linker.instance("ebbtide:functions/commands@0.1.0")?.func_wrap_async(
        "send",
        |context: StoreContextMut<'_, State>, (command,): (CommandSent,)| {
            Box::new(async move {
                let answer: Result<AcceptedOut, CommandError> =
                    match granted(&context, Grant::Commands, &command.aggregate)? {
                        Ok(calling) => {
                            let app = calling.app.clone();
                            let command = OwnCommand { trace: calling.begin_span(), ..command.into() };
                            calling
                                .ask(async move { app.send(command).await })
                                .await?
                                .map(AcceptedOut::from)
                                .map_err(CommandError::from)
                        }
                        Err(denied) => Err(denied.into()),
                    };
                Ok((answer,))
            })
        },
    )
}

/// The interface `models`.
pub(super) fn add_models(linker: &mut Linker<State>) -> Result<()> {
    let mut models = linker.instance("ebbtide:functions/models@0.1.0")?;
    models.func_wrap_async(
        "get",
        |context: StoreContextMut<'_, State>, (model, key, at_least): (String, String, Option<u64>)| {
            Box::new(async move {
                let answer: Result<FoundOut, ReadError> = match granted(&context, Grant::Models, &model)? {
                    Ok(calling) => {
                        let app = calling.app.clone();
                        calling
                            .ask(async move { app.get(&model, &key, at_least.map(Position)).await })
                            .await?
                            .map(FoundOut::from)
                            .map_err(ReadError::from)
                    }
                    Err(denied) => Err(denied.into()),
                };
                Ok((answer,))
            })
        },
    )?;
    models.func_wrap_async(
        "find",
        |context: StoreContextMut<'_, State>, (query, at_least): (QueryIn, Option<u64>)| {
            Box::new(async move {
                let answer: Result<PageOut, ReadError> = match granted(&context, Grant::Models, &query.model)?
                {
                    Ok(calling) => {
                        let app = calling.app.clone();
                        let asked = async move {
                            let model = query.model.clone();
                            app.query(&model, query.into_query(), at_least.map(Position)).await
                        };
                        calling.ask(asked).await?.map(PageOut::from).map_err(ReadError::from)
                    }
                    Err(denied) => Err(denied.into()),
                };
                Ok((answer,))
            })
        },
    )
}
