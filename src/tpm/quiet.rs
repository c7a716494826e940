//! libtss2's own log.

use std::os::unix::process::CommandExt;

/// libtss2 prints every refusal of the TPM on standard error, unless `TSS2_LOG` says otherwise
/// before it starts. Changing one's own environment is unsafe once threads exist, so the process
/// replaces itself once with the variable set; who sets it keeps what they set. To be called
/// before anything was opened.
pub fn quiet_libtss2() {
    if std::env::var_os("TSS2_LOG").is_some() {
        return;
    }
    let Ok(executable) = std::env::current_exe() else { return };
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| executable.clone().into_os_string());
    // Only comes back if it failed (under an emulator, say); then libtss2 is merely talkative.
    let _ = std::process::Command::new(executable).arg0(name).args(arguments).env("TSS2_LOG", "all+NONE").exec();
}
