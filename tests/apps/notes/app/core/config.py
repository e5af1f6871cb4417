from pydantic import PostgresDsn
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_file=".env", extra="ignore")

    SECRET_KEY: str
    DATABASE_URL: PostgresDsn
    ALLOWED_HOSTS: list[str] = ["*"]
    ACCESS_TOKEN_EXPIRE_MINUTES: int = 60 * 24 * 7
    MIN_CONNECTION_COUNT: int = 1
    MAX_CONNECTION_COUNT: int = 5


settings = Settings()
