//! `darkroom serve`: runs the server until it is told to stop. SIGTERM and Ctrl-C let it finish what is running; a
//! second one ends it at once.

use std::io::IsTerminal;

use tokio_util::sync::CancellationToken;
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use super::args::ServeArgs;
use super::error::CommandError;
use super::print_result;
use crate::comfy::logs::LogWriter;
use crate::config::LogFormat;
use crate::server::{Server, ServerError};

/// Runs it.
pub(super) fn run(args: &ServeArgs, verbose: u8, quiet: bool) -> Result<(), CommandError> {
    let loaded = args.flags.load()?;
    let _log = start_logging(loaded.config.log.format, verbose, quiet);
    for variable in &loaded.unknown_variables {
        tracing::warn!("{variable} is no setting of Darkroom; `darkroom config` lists them");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|e| CommandError::plain(format!("cannot start threads: {e}")))?;
    let served = runtime.block_on(async {
        let (stop, stop_now) = (CancellationToken::new(), CancellationToken::new());
        listen_for_signals(stop.clone(), stop_now.clone()).map_err(ServerError::Serve)?;
        let server = Server::start(loaded.config).await?;
        tracing::info!(url = server.url, "listening");
        if let Some(url) = server.second_url() {
            tracing::info!(url, "listening for ComfyUI's clients as well");
        }
        let line = format!("listening on {}", server.url);
        print_result(&line)
            .map_err(|_| ServerError::Serve(std::io::Error::other("standard output is closed")))?;
        server.run(stop, stop_now).await
    });
    // What still blocks (a slow name lookup, a hanging disk) is not waited for.
    runtime.shutdown_background();
    served.map_err(|error| match error.fix() {
        Some(fix) => CommandError::failure(&error, fix),
        None => CommandError::plain(error),
    })
}

/// Lines go through a thread of their own: whoever reads them may stop, and then they are dropped, but no request waits.
/// What is returned writes the rest when it is dropped.
fn start_logging(format: LogFormat, verbose: u8, quiet: bool) -> WorkerGuard {
    let level = match (quiet, verbose) {
        (true, _) => "error",
        (false, 0) => "info,sqlx=warn",
        (false, 1) => "debug,sqlx=warn,hyper=info,h2=info,reqwest=info",
        (false, _) => "debug",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let colours = std::io::stderr().is_terminal();
    let (writer, guard) = tracing_appender::non_blocking(std::io::stderr());
    let log = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(colours);
    // The last lines, for ComfyUI's front end.
    let kept = tracing_subscriber::fmt::layer().with_writer(LogWriter).with_ansi(false);
    let log = match format {
        LogFormat::Text => log.boxed(),
        LogFormat::Json => log.json().boxed(),
    };
    // Fails only where a log was started before.
    let _ = tracing_subscriber::registry().with(filter).with(log).with(kept).try_init();
    guard
}

#[cfg(unix)]
fn listen_for_signals(stop: CancellationToken, stop_now: CancellationToken) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        for token in [stop, stop_now] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            token.cancel();
        }
    });
    Ok(())
}

#[cfg(not(unix))]
fn listen_for_signals(stop: CancellationToken, stop_now: CancellationToken) -> std::io::Result<()> {
    tokio::spawn(async move {
        for token in [stop, stop_now] {
            if tokio::signal::ctrl_c().await.is_err() {
                return;
            }
            token.cancel();
        }
    });
    Ok(())
}
