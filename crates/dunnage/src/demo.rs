use dunnage_model::Result;
pub fn run() -> Result<()> {
    Ok(())
}
